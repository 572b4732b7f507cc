"""AUC and log loss, exact, from logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def auc(labels: NDArray[np.floating], scores: NDArray[np.floating]) -> float:
    """Area under the ROC curve; ties count one half (Mann and Whitney).

    Args:
        labels: 0 or 1, shape (B,).
        scores: Any monotone score, shape (B,).

    Raises:
        ValueError: all labels are equal, or a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite")
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    positives = labels[order] > 0.5
    n_positive = int(positives.sum())
    n_negative = len(positives) - n_positive
    if n_positive == 0 or n_negative == 0:
        raise ValueError("the AUC needs rows of both labels")
    # The rank of a tie is the mean rank of its members, in halves, so in exact integers doubled.
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    ends = np.append(starts[1:], len(ordered))
    doubled_ranks = np.repeat(starts + ends + 1, ends - starts)
    doubled_sum = int(doubled_ranks[positives].sum())
    return (doubled_sum - n_positive * (n_positive + 1)) / (2 * n_positive * n_negative)


def log_loss(labels: NDArray[np.floating], logits: NDArray[np.floating]) -> float:
    """Mean negative log likelihood in nats, from logits, without overflow.

    Raises:
        ValueError: no rows, or a logit is not finite.
    """
    if len(logits) == 0 or not np.isfinite(logits).all():
        raise ValueError("the log loss needs rows with finite logits")
    z = logits.astype(np.float64)
    return float(np.mean(np.maximum(z, 0) - z * labels + np.log1p(np.exp(-np.abs(z)))))
