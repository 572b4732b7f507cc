"""What would give a wrong table is refused, by name."""

from __future__ import annotations

import math

import pytest

from afm_dist.report import validated, write_report
from tests.report.example import example_report


def _row(report, name, stage="after-finetune"):
    return next(row for row in report["rows"] if (row["name"], row["stage"]) == (name, stage))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["auc", "log_loss", "rows_per_second"])
def test_a_number_that_is_none_names_its_row(tmp_path, key, bad):
    report = example_report()
    _row(report, "afm-mlp")[key] = bad

    with pytest.raises(ValueError, match=rf"'afm-mlp' \(after-finetune\) {key}"):
        write_report(report, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_nan_in_a_curve_names_the_candidate():
    report = example_report()
    report["finetuning"][1]["curve"][2]["validation_auc"] = math.nan

    with pytest.raises(ValueError, match="finetuning 'afm-mlp' curve 2 validation_auc"):
        validated(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.update(format_version=2), "format_version is 2"),
        (lambda report: report.update(rows=[]), "'rows' is missing or empty"),
        (lambda report: _row(report, "afm-emb").pop("bytes"), r"'afm-emb' .*: 'bytes' is missing"),
        (lambda report: _row(report, "afm-emb").update(bytes=0), "bytes is 0, not above 0"),
        (lambda report: _row(report, "afm-emb").update(auc=80.27), "auc is 80.27, not between 0 and 1"),
        (lambda report: _row(report, "afm-emb").update(stage="done"), "stage must be one of"),
        (lambda report: _row(report, "afm-emb").update(throughput_ratio=9.0), "not inside its spread"),
        (
            lambda report: _row(report, "afm-emb")["reliability"][2].update(observed=1e9),
            r"'afm-emb' .*: reliability bin 2 has more clicks than rows",
        ),
        (lambda report: report["data"]["description"].pop("best"), "description of the data.*'best'"),
        (lambda report: report["rows"].append(_row(report, "afm-emb")), "there are two of it"),
        (lambda report: report["rows"].remove(_row(report, "baseline", "trained")), "no row 'baseline'"),
        (lambda report: report["shipped"].update(name="afm"), "shipped is 'afm'.* not among the rows"),
        (lambda report: report["layers"][0].update(rank=401), "'mlp.2': rank 401 is not within width 400"),
        (lambda report: report["layers"][0]["eigenvalues"].reverse(), "'mlp.2': eigenvalues must"),
        (lambda report: report["finetuning"][0].update(kept_step=7), "kept_step 7 is not a step"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(change, message):
    report = example_report()
    change(report)

    with pytest.raises(ValueError, match=message):
        validated(report)
