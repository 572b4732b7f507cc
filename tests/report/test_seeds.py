"""The report over several seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from afm_dist.errors import DataError
from afm_dist.report import over_seeds, seeds_table, sentence, write_seeds_report
from tests.report.example import example_report
from tests.report.parsed_page import Page

SHIFTS = {3: 0.0, 5: 0.001, 8: -0.0005}


def reports(*, gain: float = 0.0) -> dict:
    """One report per seed: all models move together, and the shipped one by a little of its own."""
    made = {}
    for place, (seed, shift) in enumerate(SHIFTS.items()):
        report = example_report()
        for row in report["rows"]:
            row["auc"] += shift
            if row["name"] == "afm-emb" and row["stage"] == "after-finetune":
                row["auc"] += gain + 0.0001 * (place - 1)
        made[seed] = report
    return made


def row_of(content: dict, name: str, stage: str = "after-finetune") -> dict:
    return next(row for row in content["rows"] if (row["name"], row["stage"]) == (name, stage))


def test_means_and_deviations_are_over_the_seeds() -> None:
    found = row_of(over_seeds(reports()), "control")
    values = [0.8034 + shift for shift in SHIFTS.values()]
    assert found["auc"]["mean"] == pytest.approx(statistics.mean(values), abs=1e-12)
    assert found["auc"]["deviation"] == pytest.approx(statistics.stdev(values), abs=1e-12)


def test_differences_are_of_the_same_seed() -> None:
    """What moves all models of a seed moves no difference."""
    found = row_of(over_seeds(reports()), "afm-emb")["vs_control"]
    assert found["mean"] == pytest.approx(0.8027 - 0.8034, abs=1e-12)
    assert found["deviation"] == pytest.approx(0.0001, abs=1e-12)
    assert not found["noise"]


def test_a_difference_that_seeds_explain_is_called_noise(tmp_path: Path) -> None:
    content = over_seeds(reports(gain=0.8034 - 0.8027 + 0.00006))
    assert row_of(content, "afm-emb")["vs_control"]["noise"]
    assert "against the control (within noise, p = 0.41)" in sentence(content)
    write_seeds_report(content, str(tmp_path))
    assert "≈ +0.0001 ± 0.0001" in (tmp_path / "report.md").read_text()


def test_the_baseline_has_no_differences() -> None:
    found = row_of(over_seeds(reports()), "baseline", "trained")
    assert "vs_baseline" not in found
    assert "vs_control" not in found


def test_the_three_files_and_the_table(tmp_path: Path) -> None:
    content = over_seeds(reports())
    write_seeds_report(content, str(tmp_path))
    assert json.loads((tmp_path / "report.json").read_text()) == content
    page = Page.of((tmp_path / "report.html").read_text())
    assert [a for a in page.addresses if a[0] != "#"] == [f"../seed-{s}/report/report.html" for s in SHIFTS]
    assert seeds_table(content).row_count == len(content["rows"])


def test_logs_that_differ_by_seed_are_said(tmp_path: Path) -> None:
    made = reports()
    assert over_seeds(made)["same_rows"]
    made[5]["data"]["fingerprint"] = "other"
    content = over_seeds(made)
    write_seeds_report(content, str(tmp_path))
    assert "a log of its own" in (tmp_path / "report.md").read_text()


def test_reports_of_other_models_are_not_averaged() -> None:
    made = reports()
    made[8]["rows"] = [row for row in made[8]["rows"] if row["name"] != "svd-emb"]
    with pytest.raises(DataError, match="seed 8 has other models"):
        over_seeds(made)
