"""A table over several compressions: mean and deviation over seeds, a row per model and dataset.

python -m jobs.benchmarks.summary RUN [RUN ...]

RUN is the run directory of a jobs/compress.py that trained its baseline itself, of one seed or with --seeds.
Prints Markdown.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import tyro

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.report.comparison import NO_CHOICE
from afm_dist.report.finished_run import SEED
from afm_dist.runtime import console
from jobs.compress_options import Compress

REPORT = "report/report.json"
# The report's rows: the uncompressed model, the same with the fine-tuning of the compressed one, that one.
ROWS = {
    "baseline": ("baseline", "trained"),
    "control": ("control", "after-finetune"),
    "AFM, before": ("afm-emb", "before-finetune"),
    "AFM": ("afm-emb", "after-finetune"),
    "SVD": ("svd-emb", "after-finetune"),
}
# Runs may differ in these options and be averaged: where and how they ran, and what they measured besides.
# Any other option, one that a later release adds too, makes them different compressions.
MIXED = (*NO_CHOICE, "methods", "ablation", "stream_check")


@dataclass(frozen=True)
class Compression:
    """What one run measured.

    Attributes:
        model: Architecture.
        data: Name of its folder.
        fingerprint: Of the dataset; None of the demo, which makes a log for each seed.
        seed: Of the run.
        options: All but ``MIXED``: the preset, ranks, recipe.
        auc: Of the test split, by the names of ``ROWS``.
        smaller: Bytes of the baseline over those of the compressed model.
        bayes_auc: The best possible; None where it is not known.
    """

    model: str
    data: str
    fingerprint: str | None
    seed: int
    options: Mapping[str, Any]
    auc: Mapping[str, float]
    smaller: float
    bayes_auc: float | None

    @classmethod
    def read(cls, run: str) -> list[Compression]:
        """From the report of a run: one, or with ``--seeds`` one for each.

        Raises:
            DataError: there is none, or a row is missing.
        """
        report: dict[str, Any] = storage.read_json(storage.join(run, REPORT), dict[str, Any])
        if "seeds" in report:
            return [one for seed in report["seeds"] for one in cls.read(storage.join(run, f"{SEED}{seed}"))]
        if not {"rows", "config", "data"} <= report.keys():
            raise DataError(f"{run}: its report is not one of jobs/compress.py")
        return [cls._of(run, report)]

    @classmethod
    def _of(cls, run: str, report: Mapping[str, Any]) -> Compression:
        rows = {(row["name"], row["stage"]): row for row in report["rows"]}
        missing = [name for name, row in ROWS.items() if row not in rows]
        if missing:
            raise DataError(f"{run}: its report has no row for {missing[0]!r}")
        config, data = report["config"], report["data"]
        if config.get("checkpoint"):
            raise DataError(f"{run}: its baseline was trained elsewhere; nothing here says which model it is")
        # Reports from before an option was there mean its default.
        defaults = {each.name: each.default for each in fields(Compress)}
        options = {name: value for name, value in {**defaults, **config}.items() if name not in MIXED}
        return cls(
            model=config["model"],
            options=options,
            data=data_name(config),
            fingerprint=data.get("fingerprint") if config.get("data") else None,
            seed=config["seed"],
            auc={name: rows[row]["auc"] for name, row in ROWS.items()},
            smaller=rows[ROWS["baseline"]]["bytes"] / rows[ROWS["AFM"]]["bytes"],
            bayes_auc=data.get("bayes_auc"),
        )


def table(runs: Iterable[Compression]) -> str:
    """A row per dataset and model, in order.

    Raises:
        DataError: a seed occurs twice in a row, or its runs differ in more than the seed.
    """
    groups: dict[tuple[str, str], list[Compression]] = {}
    for run in runs:
        groups.setdefault((run.data, run.model), []).append(run)
    differences = ("AFM", "control"), ("AFM", "baseline")
    head = ["data", "model", "seeds", *ROWS, *(f"{a} − {b}" for a, b in differences), "to Bayes", "smaller"]
    lines = [head, ["---", "---", *["--:"] * (len(head) - 2)]]
    for (data, model), group in sorted(groups.items()):
        if len({run.seed for run in group}) < len(group):
            raise DataError(f"{data}, {model}: two runs of one seed")
        if len({run.fingerprint for run in group}) > 1:
            raise DataError(f"{data}, {model}: runs on different datasets whose folders have this name")
        for name in differing([run.options for run in group]):
            values = ", ".join(dict.fromkeys(str(run.options.get(name)) for run in group))
            raise DataError(f"{data}, {model}: runs with other options; --{name.replace('_', '-')}: {values}")
        cells = [spread([run.auc[name] for run in group]) for name in ROWS]
        # Of the same seed: the models share their rows, their order and their baseline.
        cells += [spread([run.auc[a] - run.auc[b] for run in group], sign=True) for a, b in differences]
        known = [run.bayes_auc - run.auc["AFM"] for run in group if run.bayes_auc is not None]
        cells.append(spread(known) if len(known) == len(group) else "")
        cells.append(f"{statistics.mean(run.smaller for run in group):.1f}×")
        lines.append([data, model, str(len(group)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options in which runs differ."""
    names = dict.fromkeys(name for each in options for name in each)
    return [name for name in names if any(each.get(name) != options[0].get(name) for each in options)]


def data_name(config: Mapping[str, Any]) -> str:
    """What a dataset is called: its folder, of the demo ``demo``.

    Args:
        config: Of a run of jobs/compress.py.
    """
    return str(config["data"]).rstrip("/").rpartition("/")[2] if config.get("data") else "demo"


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean ± sample deviation, to four digits; the value alone, if there is one."""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summarise several compressions."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of jobs/compress.py."""


def main(config: Summary) -> None:
    """Run the job."""
    console.info(table(one for run in config.runs for one in Compression.read(run)))


if __name__ == "__main__":
    console.run_job(Summary, main)
