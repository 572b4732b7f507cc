from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from afm_dist.evaluation.calibration import calibration, sigmoid
from afm_dist.evaluation.scored_rows import ScoredRows
from tests.evaluation.examples import Example, examples


@settings(deadline=None)
@given(examples())
def test_ratio_is_predicted_over_observed_clicks(example: Example) -> None:
    weights = np.ones(len(example.labels)) if example.weights is None else example.weights
    expected = (weights * example.probabilities).sum() / (weights * example.labels).sum()
    assert calibration(example.rows).ratio == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(examples(weighted=False, most_rows=50), st.integers(1, 12))
def test_bins_are_those_of_scikit_learn(example: Example, bins: int) -> None:
    # Where the number of rows is a multiple of that of the bins; elsewhere it interpolates between rows.
    labels, logits = (np.repeat(each, bins) for each in (example.labels, example.logits.astype(np.float64)))
    probabilities = sigmoid(logits)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=bins, strategy="quantile")

    table = calibration(ScoredRows.of(labels, logits), bins).bins

    assert [each.observed / each.weight for each in table] == pytest.approx(observed, abs=1e-12)
    assert [each.predicted / each.weight for each in table] == pytest.approx(predicted, abs=1e-12)


@settings(deadline=None)
@given(examples(), st.integers(1, 12))
def test_bins_end_at_quantiles_by_weight(example: Example, bins: int) -> None:
    weights = np.ones(len(example.labels)) if example.weights is None else example.weights
    ascending = np.argsort(example.logits, kind="stable")
    scores, cumulative = example.logits[ascending], np.cumsum(weights[ascending])
    borders = [
        scores[np.argmax(cumulative >= cumulative[-1] * k / bins * (1 - 1e-12))] for k in range(1, bins)
    ]
    which = np.searchsorted(borders, example.logits)
    weight = np.bincount(which, weights, minlength=bins)
    predicted = np.bincount(which, weights * example.probabilities, minlength=bins)
    observed = np.bincount(which, weights * example.labels, minlength=bins)

    found = calibration(example.rows, bins)

    assert [each.weight for each in found.bins] == pytest.approx(weight[weight > 0], rel=1e-9)
    assert [each.predicted for each in found.bins] == pytest.approx(predicted[weight > 0], rel=1e-9)
    assert [each.observed for each in found.bins] == pytest.approx(observed[weight > 0], rel=1e-9, abs=1e-9)
    gap = np.abs(predicted - observed).sum() / weights.sum()
    assert found.expected_error == pytest.approx(gap, rel=1e-9, abs=1e-12)


def test_labels_drawn_from_the_predictions_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=200_000) - 2
    labels = generator.random(200_000) < sigmoid(logits)

    honest = calibration(ScoredRows.of(labels, logits))
    boastful = calibration(ScoredRows.of(labels, logits + 0.5))

    assert honest.ratio == pytest.approx(1, abs=0.02)
    assert honest.expected_error < 0.005
    assert boastful.ratio > 1.3 and boastful.expected_error > 0.05
    assert [each.weight for each in honest.bins] == [20_000] * 10


def test_rounded_sums_of_weights_still_make_equal_bins() -> None:
    # Added up in float64, eight times 0.1 is less than 0.8.
    table = calibration(ScoredRows.of([1] * 10, np.arange(10.0), [0.1] * 10)).bins
    assert [each.weight for each in table] == [0.1] * 10


def test_equal_predictions_share_a_bin() -> None:
    (only,) = calibration(ScoredRows.of([0, 1, 0, 0], np.full(4, -1.0))).bins
    assert (only.weight, only.observed, only.predicted) == (4, 1, pytest.approx(4 / (1 + np.e)))


def test_probabilities_of_extreme_logits_do_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(np.array([-1e4, -50.0, 0.0, 1e4])).tolist() == [0, np.exp(-50), 0.5, 1]


def test_without_a_click_there_are_bins_and_no_ratio() -> None:
    found = calibration(ScoredRows.of([0, 0], [0.0, 0.2]))
    assert found.ratio is None
    assert [each.observed for each in found.bins] == [0, 0]
    assert found.expected_error == pytest.approx((0.5 + sigmoid(np.array([0.2]))[0]) / 2)
