"""Mean and deviation that no order of addition can change."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np

MANTISSA_BITS = 53
# The smallest positive float64 is 2^-1074 = 0.5 * 2^-1073, and its mantissa has 53 bits as any other's.
UNIT_BITS = 1073 + MANTISSA_BITS
ROOT_BITS = 64


@dataclass(frozen=True)
class ExactMoments:
    """Count, sum and sum of squares of float64 numbers, as integers of any size.

    Every float64 is a whole multiple of 2^-1126, so nothing is rounded before the end: mean and
    deviation are the same bits for every block size and number of workers, at every scale.

    Attributes:
        count: Of the numbers.
        total: Their sum, in units of 2^-1126.
        squares: The sum of their squares, in units of 2^-2252.
    """

    count: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, values: np.ndarray, counts: np.ndarray) -> ExactMoments:
        """Sums over (V) finite float64 values that occur ``counts`` (V) times each."""
        fractions, exponents = np.frexp(values)
        order = np.argsort(exponents, kind="stable")
        found, starts = np.unique(exponents[order], return_index=True)
        # Python's integers: a square alone has 106 bits.
        mantissas = np.ldexp(fractions[order], MANTISSA_BITS).astype(np.int64).astype(object)
        times = counts[order].astype(object)
        weighted = mantissas * times
        totals, squares = (np.add.reduceat(each, starts) for each in (weighted, weighted * mantissas))
        shifts = [exponent - MANTISSA_BITS + UNIT_BITS for exponent in found.tolist()]
        return cls(
            int(times.sum()),
            sum(int(total) << shift for total, shift in zip(totals, shifts, strict=True)),
            sum(int(square) << 2 * shift for square, shift in zip(squares, shifts, strict=True)),
        )

    def __add__(self, other: ExactMoments) -> ExactMoments:
        return ExactMoments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def mean(self) -> float:
        """Mean, rounded once; 0 without values."""
        return self.total / (self.count << UNIT_BITS) if self.count else 0.0

    def deviation(self) -> float:
        """Population standard deviation; 1 where it would be 0, so that one can divide by it."""
        if not self.count:
            return 1.0
        scaled = self.count * self.squares - self.total**2
        # The square may be beyond the largest float; the root is not.
        root = isqrt(scaled << 2 * ROOT_BITS)
        return root / (self.count << UNIT_BITS + ROOT_BITS) or 1.0
