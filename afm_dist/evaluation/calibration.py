"""Calibration: predicted clicks against observed ones, over all rows and by quantiles of the prediction."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afm_dist.evaluation.scored_rows import Floats, ScoredRows, SortedScores

BINS = 10
# Weights that add up to a border on paper do so within this share of it.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Bin:
    """Rows with neighbouring predictions.

    Attributes:
        weight: Number of rows, or the sum of their weights.
        predicted: Clicks the model expects: the (weighted) sum of its probabilities.
        observed: Clicks there were: the (weighted) number of rows with label 1.
    """

    weight: float
    predicted: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """A reliability table and what follows from it.

    Attributes:
        bins: By ascending prediction; none is empty. There are none of no rows.
    """

    bins: tuple[Bin, ...]

    @property
    def ratio(self) -> float | None:
        """Predicted over observed clicks of all rows; above 1 the model expects too many.

        None where no click was observed.
        """
        observed = fsum(each.observed for each in self.bins)
        return fsum(each.predicted for each in self.bins) / observed if observed else None

    @property
    def expected_error(self) -> float | None:
        """Mean over the rows of |predicted − observed rate| of their bin (ECE); None of no rows."""
        gaps = (abs(each.predicted - each.observed) for each in self.bins)
        return fsum(gaps) / fsum(each.weight for each in self.bins) if self.bins else None

    def to_json(self) -> list[dict[str, Any]]:
        """Return the bins as plain values."""
        return [asdict(each) for each in self.bins]


def calibration(rows: ScoredRows, bins: int = BINS) -> Calibration:
    """Compare predicted with observed clicks by quantiles of the prediction.

    Bin k ends with the lowest prediction that at least k/bins of all rows, by weight, do not exceed.
    Equal predictions share a bin, so there may be fewer than asked for.

    Args:
        rows: Scored with logits.
        bins: How many quantiles.
    """
    if not len(rows):
        return Calibration(())
    sides = (rows.positives, rows.negatives)
    borders = [_quantile(sides, rows.weight * k / bins) for k in range(1, bins)]
    parts = zip(*(_parts(side, borders) for side in sides), strict=True)
    table = (_bin(rows, positives, negatives) for positives, negatives in parts)
    return Calibration(tuple(each for each in table if each.weight > 0))


def _quantile(sides: Sequence[SortedScores], weight: float) -> Any:
    """Find the lowest score that rows of at least this weight do not exceed."""

    def weight_up_to(score: Any) -> float:
        return float(sum(side.weight_up_to(score) for side in sides))

    reached = weight * (1 - ROUNDING)
    places = [bisect_left(side.values, reached, key=weight_up_to) for side in sides]
    return min(side.values[i] for side, i in zip(sides, places, strict=True) if i < len(side))


def _parts(side: SortedScores, borders: Sequence[Any]) -> list[slice]:
    """Return the rows up to each border, and above the last one."""
    places = [int(np.searchsorted(side.values, border, "right")) for border in borders]
    return [slice(start, stop) for start, stop in pairwise([0, *places, len(side)])]


def _bin(rows: ScoredRows, positives: slice, negatives: slice) -> Bin:
    clicks = rows.positives.weight_of(positives)
    return Bin(
        weight=clicks + rows.negatives.weight_of(negatives),
        predicted=rows.positives.sum_of(sigmoid, positives) + rows.negatives.sum_of(sigmoid, negatives),
        observed=clicks,
    )


def sigmoid(logits: Floats) -> NDArray[np.float64]:
    """Compute the probability 1 / (1 + e⁻ᶻ), without overflow."""
    z = logits.astype(np.float64)
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1 + small))
