from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from sklearn import metrics

from afm_dist.evaluation.metrics import auc, log_loss
from afm_dist.evaluation.scored_rows import ScoredRows
from tests.evaluation.examples import Example, examples, probabilities


@settings(deadline=None)
@given(examples())
def test_auc_is_that_of_scikit_learn_with_ties_and_weights(example: Example) -> None:
    expected = metrics.roc_auc_score(example.labels, example.logits, sample_weight=example.weights)
    assert auc(example.rows) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(examples())
def test_log_loss_is_that_of_scikit_learn_with_weights(example: Example) -> None:
    expected = metrics.log_loss(example.labels, example.probabilities, sample_weight=example.weights)
    assert log_loss(example.rows) == pytest.approx(expected, abs=1e-12, rel=1e-12)


@settings(deadline=None)
@given(examples(weighted=False))
def test_auc_without_weights_rounds_once(example: Example) -> None:
    positives, negatives = (example.logits[example.labels == label] for label in (1, 0))
    doubled = sum(2 * int((negatives < each).sum()) + int((negatives == each).sum()) for each in positives)
    assert auc(example.rows) == doubled / (2 * len(positives) * len(negatives))


@pytest.mark.parametrize(
    ("label", "logit", "loss"), [(1, 1e4, 0.0), (0, 1e4, 1e4), (1, -1e4, 1e4), (0, -1e4, 0.0)]
)
def test_log_loss_of_extreme_logits_neither_overflows_nor_clips(
    label: int, logit: float, loss: float
) -> None:
    with np.errstate(all="raise", under="ignore"):
        assert log_loss(ScoredRows.of([label], [logit])) == loss


def many_rows() -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=300_000).astype(np.float32)
    return generator.random(300_000) < probabilities(logits), logits


def test_float32_logits_of_many_rows_are_summed_in_float64() -> None:
    labels, logits = many_rows()
    exact = np.logaddexp(0, logits.astype(np.float64)) - logits.astype(np.float64) * labels
    assert log_loss(ScoredRows.of(labels, logits)) == pytest.approx(exact.mean(), rel=1e-12)


def test_auc_of_many_rows_is_that_of_scikit_learn() -> None:
    labels, logits = many_rows()
    weights = np.random.default_rng(1).exponential(size=len(labels))
    for each in (None, weights):
        expected = metrics.roc_auc_score(labels, logits, sample_weight=each)
        assert auc(ScoredRows.of(labels, logits, each)) == pytest.approx(expected, abs=1e-12)


def test_auc_depends_on_the_order_of_scores_only() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=500)
    labels = generator.integers(0, 2, 500)

    expected = auc(ScoredRows.of(labels, scores))
    assert auc(ScoredRows.of(labels, np.exp(3 * scores))) == expected
    assert auc(ScoredRows.of(labels, -scores)) == pytest.approx(1 - expected, abs=1e-15)


def test_equal_scores_are_worth_one_half() -> None:
    assert auc(ScoredRows.of([0, 1, 1, 0, 1], np.zeros(5))) == 0.5
    assert auc(ScoredRows.of([0, 1], [0.0, -0.0])) == 0.5


def test_a_perfect_order_is_worth_exactly_one_with_any_weights() -> None:
    weights = np.random.default_rng(0).exponential(size=300)
    labels = np.arange(300) >= 200
    assert auc(ScoredRows.of(labels, np.arange(300.0), weights)) == 1


@pytest.mark.parametrize("label", [0, 1])
def test_an_auc_of_one_label_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"rows of both labels.* 4 with label {label}"):
        auc(ScoredRows.of(np.full(4, label), np.arange(4.0)))


def test_rows_of_weight_zero_do_not_make_a_label_occur() -> None:
    with pytest.raises(ValueError, match="rows of both labels"):
        auc(ScoredRows.of([0, 1, 1], [0.1, 0.2, 0.3], [0, 1, 1]))


def test_a_log_loss_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="needs rows"):
        log_loss(ScoredRows.of([], []))
