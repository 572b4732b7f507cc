"""Reports of a test split with rows of one label, or none: what is undefined is said to be, everywhere."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from afm_dist import report as reports
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.dataset.manifest import Field
from afm_dist.report import over_seeds, read_report, validated, write_report
from afm_dist.report.comparison import compare
from afm_dist.report.comparison_page import table as comparison_table
from afm_dist.report.comparison_page import write_comparison
from afm_dist.report.finished_run import FinishedRun
from afm_dist.report.model_card import model_card
from afm_dist.report.seeds import seeds_table, sentence, write_seeds_report
from tests.report.example import example_report

CONFIG = ModelConfig(
    architecture="deepfm",
    hyper_parameters={"embedding_dim": 4},
    fields=(Field(name="ad", kind="categorical", cardinality=3),),
)
# Of each row; what a split holds by its label rate, or None without rows.
UNDEFINED: dict[str, tuple[float | None, dict[str, Any]]] = {
    "no clicks": (0.0, {"auc": None, "calibration": None}),
    "clicks only": (1.0, {"auc": None, "calibration": 0.4}),
    "no rows": (None, {"auc": None, "log_loss": None, "calibration": None, "calibration_error": None}),
}


def undefined(kind: str) -> dict[str, Any]:
    """The example as a test split of this kind gives it."""
    rate, figures = UNDEFINED[kind]
    report = example_report()
    for row in report["rows"]:
        row.update(figures)
        for each in row["reliability"]:
            each["observed"] = each["weight"] * (rate or 0)
        if rate is None:
            row["reliability"] = []
    for part in (*report["relu_modes"], *report["sweep"]):
        part.update({key: None for key in ("auc", "log_loss") if figures.get(key, 0) is None})
    test = report["data"]["splits"]["test"]
    test["positive_share"] = rate
    if rate is None:
        del test["positive_share"]
        test["rows"] = 0
    for key in ("bayes_auc", "bayes_log_loss", "bayes_split"):
        del report["data"][key]
    return report


def printed(table: Any) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(table)
    return buffer.getvalue()


every_kind = pytest.mark.parametrize("kind", UNDEFINED)


@every_kind
def test_every_page_says_what_is_undefined(tmp_path: Path, kind: str) -> None:
    report = undefined(kind)

    write_report(report, str(tmp_path))

    rows = read_report(str(tmp_path / "report.json"))["rows"]
    assert all(row["auc"] is None for row in rows)
    assert all((row["log_loss"] is None) == (kind == "no rows") for row in rows)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "AUC undefined on the test split" in text
        assert "None" not in text and "nan" not in text.replace("nance", "")
    page = (tmp_path / "report.html").read_text()
    assert "undefined" in page.partition("<table")[2]
    # What does not need the AUC is drawn all the same.
    assert 'aria-label="Throughput' in page and 'aria-label="Validation AUC' in page
    assert 'aria-label="Test AUC' not in page


@every_kind
def test_the_terminal_says_what_is_undefined_in_100_columns(kind: str) -> None:
    lines = printed(reports.table(undefined(kind))).splitlines()

    (shipped,) = [line for line in lines if "afm-emb" in line and "after" in line]
    assert shipped.split().count("undefined") == (2 if kind == "no rows" else 1)
    assert max(map(len, lines)) <= 100


@every_kind
def test_a_card_claims_no_figure_that_is_undefined(kind: str) -> None:
    card = model_card(validated(undefined(kind)), CONFIG.to_json(), vocabularies=False)

    front = card.split("---")[1]
    assert "value: null" not in front
    assert ("name: log loss" in front) == (kind != "no rows")
    assert "name: AUC" not in front
    assert "| this model | undefined |" in card


@every_kind
def test_over_seeds_one_that_is_undefined_leaves_the_mean_undefined(tmp_path: Path, kind: str) -> None:
    """The demo makes a log for each seed: of the others the mean would be another figure."""
    content = over_seeds({0: validated(example_report()), 1: validated(undefined(kind))})

    assert all(row["auc"] is None and "vs_baseline" not in row for row in content["rows"])
    assert "AUC undefined over 2 seeds" in sentence(content)
    assert "undefined" in printed(seeds_table(content))
    write_seeds_report(content, str(tmp_path))
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["auc"] is None
    for name in ("report.md", "report.html"):
        assert "undefined" in (tmp_path / name).read_text()


@every_kind
def test_runs_are_compared_by_what_is_defined(tmp_path: Path, kind: str) -> None:
    runs = [
        FinishedRun(location=f"runs/{name}", reports={0: validated(undefined(kind))}) for name in ("a", "b")
    ]

    content = compare(runs)

    assert "undefined" in printed(comparison_table(content))
    write_comparison(content, str(tmp_path))
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "AUC undefined" in text and "None" not in text


@pytest.mark.parametrize("key", ["auc", "log_loss"])
def test_what_is_undefined_is_null_and_not_left_out(key: str) -> None:
    report = example_report()
    del report["rows"][0][key]
    with pytest.raises(ValueError, match=f"'{key}' is missing"):
        validated(report)
