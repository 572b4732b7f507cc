"""AUC and log loss, exact, from scored rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from afm_dist.evaluation.scored_rows import Floats, ScoredRows


def auc(rows: ScoredRows) -> float:
    """Compute the area under the ROC curve; ties count one half (Mann and Whitney).

    Without weights the pairs are counted in integers.

    Args:
        rows: With any monotone score.

    Raises:
        ValueError: rows of only one label.
    """
    positives, negatives = rows.positives, rows.negatives
    if not len(positives) or not len(negatives):
        raise ValueError(
            "the AUC needs rows of both labels: "
            f"there are {len(positives):,} with label 1 and {len(negatives):,} with label 0"
        )
    wins = positives.sum_of(lambda scores: negatives.weight_below(scores) + negatives.weight_up_to(scores))
    # Products of weights may round to above 1.
    return min(1.0, wins / (2 * positives.weight * negatives.weight))


def log_loss(rows: ScoredRows) -> float:
    """Compute the mean negative log likelihood in nats, without overflow or clipping.

    Args:
        rows: Scored with logits.

    Raises:
        ValueError: no rows.
    """
    if not len(rows):
        raise ValueError("the log loss needs rows")
    total = rows.positives.sum_of(lambda logits: softplus(-logits)) + rows.negatives.sum_of(softplus)
    return total / rows.weight


def softplus(logits: Floats) -> NDArray[np.float64]:
    """Compute ln(1 + eᶻ), the loss of a row with label 0 and logit z, or label 1 and logit −z."""
    z = logits.astype(np.float64)
    return np.asarray(np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))))
