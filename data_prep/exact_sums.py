"""Mean and deviation that no order of addition can change."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, isqrt

import numpy as np

RESOLUTION = 1 << 12
SMALL_VALUE = 1 << 19
FEW_ROWS = 1 << 22
LOW_HALF = 1 << 22
ROOT_BITS = 64


@dataclass(frozen=True)
class ExactSums:
    """Count, sum and sum of squares of fixed-point numbers, as integers of any size.

    Float sums depend on the order of addition; these do not, so mean and deviation are the same
    bits for every block size and number of workers. Rounding to 2^-12 moves the mean by less than
    2^-13.
    """

    count: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, values: np.ndarray, counts: np.ndarray) -> ExactSums:
        """Sums over (V) finite values that occur ``counts`` (V) times each."""
        if np.abs(values).max(initial=0) <= SMALL_VALUE and counts.sum() < FEW_ROWS:
            small, times = np.rint(values * RESOLUTION).astype(np.int64), counts.astype(np.int64)
            # A square has 62 bits; in halves of 40 and 22 bits, 2^22 of them can be added.
            high, low = np.divmod(small * small, LOW_HALF)
            squares = int((high * times).sum()) * LOW_HALF + int((low * times).sum())
            return cls(int(times.sum()), int((small * times).sum()), squares)
        pairs = [(_fixed(v), n) for v, n in zip(values.tolist(), counts.tolist(), strict=True)]
        return cls(sum(n for _, n in pairs), sum(v * n for v, n in pairs), sum(v * v * n for v, n in pairs))

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
        # The square may be beyond the largest float; the root is not.
        root = isqrt(scaled << 2 * ROOT_BITS)
        return root / (self.count * RESOLUTION << ROOT_BITS) or 1.0


def _fixed(value: float) -> int:
    """The nearest multiple of the resolution; a product that overflows is of an integer."""
    scaled = value * RESOLUTION
    return round(scaled) if isfinite(scaled) else int(value) * RESOLUTION
