"""Labels and scores of many rows as a sorted multiset: what every exact metric is computed from.

Nothing depends on the order of the rows or on how they were split among workers, to the last bit:
sorting gives the same arrays for all of them, and every sum runs over these arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from math import fsum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]

# Rows that a sum takes at a time: what it computes for them is memory beyond the rows themselves.
BLOCK_ROWS = 1 << 18


@dataclass(frozen=True, eq=False)
class SortedScores:
    """Scores of rows with one label.

    Attributes:
        values: Ascending, finite, float32 or float64, shape (B,).
        weights: Above 0, float64, shape (B,), ascending where values are equal; None: all are 1.
    """

    values: Floats
    weights: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, values: Floats, weights: NDArray[np.float64] | None = None) -> SortedScores:
        """Sort; ``values`` is sorted in place where there are no weights."""
        # -0.0 becomes 0.0, which it equals: the order of the two would be left open.
        values += 0.0
        if weights is None:
            values.sort()
            return cls(values)
        order = np.lexsort((weights, values))
        return cls(values[order], weights[order])

    @classmethod
    def merged(cls, parts: Iterable[SortedScores]) -> SortedScores:
        """Merge all rows of some parts, none of which is changed."""
        parts = list(parts)
        values = np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)])
        if all(part.weights is None for part in parts):
            return cls.of(values)
        ones = [np.ones(len(part)) if part.weights is None else part.weights for part in parts]
        return cls.of(values, np.concatenate(ones))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def weight(self) -> float:
        """Of all rows: their number where there are no weights."""
        return self.weight_of(slice(0, len(self)))

    def weight_of(self, rows: slice) -> float:
        """Return the weight of the rows at some places of the order."""
        return rows.stop - rows.start if self.weights is None else float(self.weights[rows].sum())

    def weight_below(self, scores: Any) -> Any:
        """Sum the weight of the rows below a score, or each of (N) scores, of the dtype of ``values``."""
        return self._weight_before(np.searchsorted(self.values, scores, "left"))

    def weight_up_to(self, scores: Any) -> Any:
        """Sum the weight of the rows at or below a score, or each of (N), of the dtype of ``values``."""
        return self._weight_before(np.searchsorted(self.values, scores, "right"))

    def _weight_before(self, place: Any) -> Any:
        return place if self.weights is None else self._cumulative[place]

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        """Weight of the first i rows, shape (B + 1,); only where there are weights."""
        assert self.weights is not None
        return np.concatenate(([0.0], np.cumsum(self.weights)))

    def sum_of(self, function: Callable[[Floats], NDArray[Any]], rows: slice | None = None) -> float:
        """Compute the weighted sum of a function of the scores.

        Args:
            function: From scores (B,), a block of ``values``, to float64 or int64 (B,).
            rows: Which rows, by their place in the order; None: all.
        """
        rows = rows or slice(0, len(self))
        sums = []
        for start in range(rows.start, rows.stop, BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, rows.stop))
            numbers = function(self.values[block])
            sums.append(float((numbers if self.weights is None else numbers * self.weights[block]).sum()))
        return fsum(sums)


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Rows with a label and a score, such as a model's logit: 4 bytes a row for float32 without weights.

    Attributes:
        positives: Scores of the rows with label 1.
        negatives: Scores of the rows with label 0.
    """

    positives: SortedScores
    negatives: SortedScores

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> ScoredRows:
        """Make it from arrays, which are left as they are.

        Args:
            labels: 0 or 1, shape (B,).
            scores: Finite, shape (B,); float32 stays float32, all others become float64.
            weights: How much each row counts, shape (B,); None: each counts once. Rows of weight 0 are left
                out; other weights lie between 1e-100 and 1e100, so that no product of them overflows.

        Raises:
            ValueError: a label, score or weight that is none, named with its place, or other shapes.
        """
        labels, scores = np.asarray(labels), np.asarray(scores)
        scores = scores.astype(np.float32 if scores.dtype == np.float32 else np.float64, copy=False)
        _check_shape("labels", labels, scores)
        positive = labels == 1
        _check("label", labels, positive | (labels == 0), "0 or 1")
        _check("score", scores, np.isfinite(scores), "a finite number")
        if weights is None:
            return cls(SortedScores.of(scores[positive]), SortedScores.of(scores[~positive]))
        weights = np.asarray(weights, np.float64)
        _check_shape("weights", weights, scores)
        allowed = (weights == 0) | ((weights >= 1e-100) & (weights <= 1e100))
        _check("weight", weights, allowed, "0 or a number from 1e-100 to 1e100")
        first, second = (label & (weights > 0) for label in (positive, ~positive))
        return cls(
            SortedScores.of(scores[first], weights[first]), SortedScores.of(scores[second], weights[second])
        )

    @classmethod
    def merged(cls, parts: Iterable[ScoredRows]) -> ScoredRows:
        """Merge all rows of some parts: the same bits for any order of the parts and any split into them."""
        parts = list(parts)
        return cls(
            SortedScores.merged(part.positives for part in parts),
            SortedScores.merged(part.negatives for part in parts),
        )

    def __len__(self) -> int:
        return len(self.positives) + len(self.negatives)

    @property
    def weight(self) -> float:
        """Of all rows: their number where there are no weights."""
        return self.positives.weight + self.negatives.weight


def _check_shape(what: str, values: NDArray[Any], scores: Floats) -> None:
    if scores.ndim != 1 or values.shape != scores.shape:
        raise ValueError(
            f"{what} of shape {values.shape} and scores of shape {scores.shape}: both must be (B,)"
        )


def _check(what: str, values: NDArray[Any], good: NDArray[np.bool_], expected: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{what} of row {row} is {values[row]}, not {expected}")
