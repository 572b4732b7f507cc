from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from afm_dist.errors import DataError
from afm_dist.evaluation.metrics import auc, log_loss
from afm_dist.evaluation.score import Quality


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(2, 300),
    distinct=st.integers(1, 50),
    share=st.floats(0.01, 0.99),
)
def test_auc_is_that_of_scikit_learn_with_ties(seed: int, rows: int, distinct: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    labels = (generator.random(rows) < share).astype(np.float32)
    assume(0 < labels.sum() < rows)
    scores = generator.normal(size=distinct)[generator.integers(0, distinct, rows)]

    assert auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 300), scale=st.floats(0.1, 1.5))
def test_log_loss_is_that_of_scikit_learn(seed: int, rows: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=rows) * scale
    labels = generator.integers(0, 2, rows).astype(np.float32)

    # Larger logits are beyond the oracle, which gets probabilities and loses digits of 1 - p.
    expected = metrics.log_loss(labels, 1 / (1 + np.exp(-logits)), labels=[0, 1])
    assert log_loss(labels, logits) == pytest.approx(expected, abs=1e-12, rel=1e-12)


@pytest.mark.parametrize(
    ("label", "logit", "loss"), [(1, 1e4, 0.0), (0, 1e4, 1e4), (1, -1e4, 1e4), (0, -1e4, 0.0)]
)
def test_log_loss_of_extreme_logits_neither_overflows_nor_clips(
    label: int, logit: float, loss: float
) -> None:
    assert log_loss(np.array([label], np.float32), np.array([logit], np.float32)) == loss


def test_float32_logits_are_summed_in_float64() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=1_000_000).astype(np.float32)
    labels = generator.integers(0, 2, 1_000_000).astype(np.float32)

    exact = np.logaddexp(0, logits.astype(np.float64)) - logits.astype(np.float64) * labels
    assert log_loss(labels, logits) == pytest.approx(exact.mean(), rel=1e-12)


def test_auc_depends_on_the_order_of_scores_only() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=500)
    labels = generator.integers(0, 2, 500).astype(np.float32)

    assert auc(labels, np.exp(3 * scores)) == auc(labels, scores)
    assert auc(labels, -scores) == pytest.approx(1 - auc(labels, scores), abs=1e-15)


def test_equal_scores_are_worth_one_half() -> None:
    assert auc(np.array([0, 1, 1, 0, 1], np.float32), np.zeros(5)) == 0.5


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_an_auc_of_one_label_is_refused(label: float) -> None:
    with pytest.raises(ValueError, match="rows of both labels"):
        auc(np.full(4, label), np.arange(4.0))


@pytest.mark.parametrize("score", [np.nan, np.inf])
@pytest.mark.parametrize("metric", [auc, log_loss])
def test_scores_that_are_not_finite_are_refused(metric, score: float) -> None:
    with pytest.raises(ValueError, match=r"finite|infinite"):
        metric(np.array([0.0, 1.0, 1.0]), np.array([0.3, score, 0.1]))


def test_quality_names_the_rows_it_cannot_judge() -> None:
    with pytest.raises(DataError, match=r"baseline on the test split: .*both labels"):
        Quality.of(np.ones(3, np.float32), np.zeros(3, np.float32), "baseline on the test split")
