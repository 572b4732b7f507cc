"""Numeric columns: the logarithmic transform, and sums that no order of addition can change."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import sqrt

import numpy as np

RESOLUTION = 1 << 12


def transform(values: np.ndarray) -> np.ndarray:
    """``sign(x)·ln(1+|x|)`` in float64: linear near zero, logarithmic in the tails, odd."""
    transformed: np.ndarray = np.copysign(np.log1p(np.abs(values)), values)
    return transformed


@dataclass(frozen=True)
class ExactSums:
    """Count, sum and sum of squares of fixed-point numbers, as integers of any size.

    Float sums depend on the order of addition; these do not, so mean and deviation are the
    same bits for every block size and number of workers. Rounding to 2^-12 moves the mean by
    less than 2^-13.
    """

    count: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, transformed: np.ndarray) -> ExactSums:
        """Sums of (B) finite transformed values; |value| < 710 because float64 ends at e^710."""
        fixed = np.rint(transformed * RESOLUTION).astype(np.int64)
        # 710² · 2^24 is below 2^43.5: a million squares fit into int64.
        chunks = [fixed[start : start + (1 << 18)] for start in range(0, len(fixed), 1 << 18)]
        return cls(
            len(fixed),
            sum(int(chunk.sum()) for chunk in chunks),
            sum(int((chunk * chunk).sum()) for chunk in chunks),
        )

    def __add__(self, other: ExactSums) -> ExactSums:
        return ExactSums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def mean(self) -> float:
        """Mean; 0 without values."""
        return float(Fraction(self.total, self.count * RESOLUTION)) if self.count else 0.0

    def deviation(self) -> float:
        """Population standard deviation; 1 where it would be 0, so that one can divide by it."""
        if not self.count:
            return 1.0
        scaled = self.count * self.squares - self.total**2
        return sqrt(Fraction(scaled, (self.count * RESOLUTION) ** 2)) or 1.0
