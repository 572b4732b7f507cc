from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from data_prep.sources.best_score import BestScoreSums


def _rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probabilities = generator.beta(1, 4, count)
    return (generator.random(count) < probabilities).astype(np.uint8), probabilities


@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_scores_are_those_of_all_rows_however_they_arrive(pieces: int) -> None:
    labels, probabilities = _rows(20_000, seed=1)
    score = BestScoreSums()

    for piece in np.array_split(np.arange(len(labels)), pieces):
        score.add(labels[piece], probabilities[piece])

    assert score.rows == 20_000
    assert score.auc() == pytest.approx(roc_auc_score(labels, probabilities), abs=2e-6)
    assert score.log_loss() == pytest.approx(log_loss(labels, probabilities), abs=2e-6)


def test_rows_of_equal_probability_count_one_half() -> None:
    score = BestScoreSums()
    score.add(np.array([0, 1, 1, 0]), np.array([0.5, 0.5, 0.7, 0.9]))

    assert score.auc() == roc_auc_score([0, 1, 1, 0], [0.5, 0.5, 0.7, 0.9]) == 0.375


def test_rows_of_one_label_have_no_auc() -> None:
    score = BestScoreSums()
    score.add(np.ones(3, dtype=np.uint8), np.full(3, 0.5))

    assert score.auc() is None
