"""The best AUC and log loss that a model can reach: those of the true probabilities."""

from __future__ import annotations

import numpy as np

HISTOGRAM_BINS = 1 << 22


class BestScoreSums:
    """AUC and log loss in bounded memory: a fine histogram of the probabilities per label.

    Two rows whose probabilities differ by less than 2^-22 count as tied, which moves the AUC by
    less than 1e-6.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._histogram = np.zeros((2, HISTOGRAM_BINS), dtype=np.int64)
        self._loss = 0.0

    def add(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Take more rows in: labels (B) 0 or 1, and the true probabilities (B) of label 1."""
        bins = np.minimum((probabilities * HISTOGRAM_BINS).astype(np.int64), HISTOGRAM_BINS - 1)
        for label in (0, 1):
            np.add.at(self._histogram[label], bins[labels == label], 1)
        self._loss -= float(np.log(np.where(labels == 1, probabilities, 1 - probabilities)).sum())
        self.rows += len(labels)

    def auc(self) -> float | None:
        """Area under the ROC curve; None when all labels are equal."""
        negatives, positives = self._histogram
        if not negatives.any() or not positives.any():
            return None
        below = np.cumsum(negatives) - negatives / 2
        return round(float((positives * below).sum() / (float(positives.sum()) * float(negatives.sum()))), 6)

    def log_loss(self) -> float:
        """Mean negative log likelihood, in nats."""
        return round(self._loss / self.rows, 6)
