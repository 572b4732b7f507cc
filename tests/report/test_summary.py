"""The headline, by hand."""

from __future__ import annotations

import pytest

from afm_dist.report import summary, validated
from tests.report.example import example_report, rows


def test_headline_figures_by_hand():
    figures = summary.headline(validated(example_report()))

    assert figures.size_ratio == pytest.approx(574.46 / 101.42, rel=1e-9)
    assert figures.to_baseline == pytest.approx(0.8027 - 0.8016)
    assert figures.to_control == pytest.approx(0.8027 - 0.8034)
    assert figures.to_bayes == pytest.approx(0.8047 - 0.8027)


def test_headline_sentence_names_both_comparisons():
    figures = summary.headline(validated(example_report()))

    assert summary.sentence(figures) == (
        "5.66× smaller, 2.11× faster; "
        "AUC 0.8027, +0.0011 against the baseline and −0.0007 against the control."
    )


def test_training_and_compression_add_up_to_the_difference_to_the_baseline():
    words = summary.attribution(summary.headline(validated(example_report())))

    assert "of the shipped model's +0.0011, +0.0018 is training and −0.0007 is compression" in words
    assert "comes from more training, not from compression" in words


@pytest.mark.parametrize(
    ("name", "stage", "control"),
    [
        ("baseline", "trained", None),
        ("control", "after-finetune", None),
        ("afm-mlp", "before-finetune", "baseline"),
        ("afm-mlp", "after-finetune", "control-mlp"),
        ("afm-emb", "before-finetune", "control-mlp"),
        ("afm-emb", "after-finetune", "control"),
        ("svd-emb", "after-finetune", "control"),
    ],
)
def test_control_had_as_much_fine_tuning(name, stage, control):
    everything = rows()
    row = summary.find(everything, name, stage)

    found = summary.control_of(everything, row)

    assert (found and found["name"]) == control


def test_a_run_of_one_round_has_one_control():
    one_round = [row for row in rows() if row["name"] in ("baseline", "control", "afm-emb")]
    row = summary.find(one_round, "afm-emb", "after-finetune")

    assert summary.control_of(one_round, row)["name"] == "control"


def test_a_missing_control_is_said_and_not_replaced():
    report = example_report()
    report["rows"] = [row for row in report["rows"] if not row["name"].startswith("control")]
    figures = summary.headline(validated(report))

    assert figures.control is None
    assert "no control" in summary.attribution(figures)
    assert "control" not in summary.sentence(figures)


def test_a_larger_and_slower_model_is_called_that():
    report = example_report()
    shipped = summary.find(report["rows"], "afm-emb", "after-finetune")
    shipped.update(bytes=2 * 4 * 574_460_000, throughput_ratio=0.5, throughput_ratio_min=0.4)

    sentence = summary.sentence(summary.headline(validated(report)))

    assert sentence.startswith("2.00× larger, 2.00× slower;")


def test_order_does_not_depend_on_the_order_given():
    names = [(row["name"], row["stage"]) for row in summary.ordered(rows())]

    assert names == [(row["name"], row["stage"]) for row in summary.ordered(rows()[::-1])]
    assert [name for name, stage in names if stage != "before-finetune"] == [
        "baseline", "control-mlp", "control", "afm-mlp", "afm-emb", "svd-mlp", "svd-emb",
    ]  # fmt: skip


def test_auc_error_of_a_perfect_and_of_a_blind_score():
    assert summary.auc_error(1.0, 1000, 0.5) == 0.0
    # A blind score has the variance of the Mann-Whitney statistic: (m + n + 1) / (12 m n).
    assert summary.auc_error(0.5, 1000, 0.25) == pytest.approx((1001 / (12 * 250 * 750)) ** 0.5, rel=1e-3)
    assert summary.auc_error(0.8, 1000, 0.0) is None
