"""What `make demo` must show. Reads the run it left; skipped where there is none (CI makes one first)."""

from __future__ import annotations

import json

import pytest

from tests.jobs.commands import ROOT

REPORT = ROOT / "runs" / "demo" / "report" / "report.json"

pytestmark = pytest.mark.skipif(not REPORT.exists(), reason="no runs/demo: run `make demo` first")


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads(REPORT.read_text(encoding="utf-8"))


def auc(report: dict, name: str, stage: str) -> float:
    (row,) = [row for row in report["rows"] if (row["name"], row["stage"]) == (name, stage)]
    return row["auc"]


def test_shifted_relu_costs_at_most_half_a_thousandth_before_fine_tuning(report: dict) -> None:
    before = auc(report, "afm-mlp", "before-finetune")
    assert before == pytest.approx(auc(report, "baseline", "trained"), abs=0.0005)


def test_plain_relu_costs_more_than_the_shifted_one_before_fine_tuning(report: dict) -> None:
    modes = {(mode["activation"], mode["stage"]): mode["auc"] for mode in report["relu_modes"]}
    assert modes["plain", "before-finetune"] < modes["shifted", "before-finetune"]
    assert len(modes) == 6


def test_no_model_beats_the_bayes_auc_of_the_planted_log(report: dict) -> None:
    assert report["data"]["bayes_auc"] == pytest.approx(0.80, abs=0.01)
    assert all(0.7 < row["auc"] < report["data"]["bayes_auc"] for row in report["rows"])
    assert report["data"]["splits"]["test"]["positive_share"] == pytest.approx(0.256, abs=0.01)


def test_shipped_model_is_several_times_smaller(report: dict) -> None:
    size = {(row["name"], row["stage"]): row["bytes"] for row in report["rows"]}
    assert size["baseline", "trained"] > 4 * size["afm-emb", "after-finetune"]
