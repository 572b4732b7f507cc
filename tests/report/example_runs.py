"""Made-up finished runs. EVERY NUMBER IS INVENTED; none was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from afm_dist.report.finished_run import FinishedRun
from tests.report.example import example_report


def example_run(location: str, *, seeds: tuple[int, ...] = (0,), model: str = "deepfm") -> FinishedRun:
    """A run, its AUC a little different for each seed."""
    reports = {}
    for seed in seeds:
        report = example_report()
        report["config"] = {"model": model, "seed": seed, "output": location}
        for row in report["rows"]:
            compressed = row["name"].startswith(("afm", "svd"))
            row["auc"] = round(row["auc"] + 0.001 * seed - 0.0002 * seed**2 * compressed, 6)
        reports[seed] = report
    return FinishedRun(location=location, reports=reports)


def example_runs() -> list[FinishedRun]:
    """Two single runs and one over seeds."""
    return [
        example_run("runs/first"),
        example_run("runs/second", model="a-name-of-a-model-that-is-rather-long"),
        example_run("runs/over-three-seeds", seeds=(0, 1, 2)),
    ]


def write_run(run: FinishedRun, folder: Path) -> Path:
    """A run directory as far as a comparison reads it: markers, configuration, reports."""
    stages = {"throughput": "one", "finetune-mlp": "two"}
    several = len(run.reports) > 1
    for seed, report in run.reports.items():
        own = folder / f"seed-{seed}" if several else folder
        for name, commit in stages.items():
            write_json(own / name / "_SUCCESS", {"commit": commit})
        write_json(own / "report" / "report.json", report)
        write_json(own / "report" / "_SUCCESS", {"commit": "three", "inputs": {**stages, "data": "outside"}})
        write_json(own / "config.json", {"job": "compress", "seed": seed})
    if several:
        write_json(folder / "config.json", {"job": "compress", "seeds": "0,1,2"})
        write_json(folder / "report" / "report.json", {"format_version": 1, "seeds": list(run.reports)})
        write_json(folder / "report" / "_SUCCESS", {"commit": "four", "inputs": {"seed-0": "a digest"}})
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write a file and the folders it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
