"""Which split a row belongs to: a seeded hash of where the row stands in the input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "validation", "test")
TRAIN = 0

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(values: np.ndarray) -> np.ndarray:
    """Well-mixed 64-bit hashes of 64-bit integers.

    Args:
        values: (B) integers, taken modulo 2^64.

    Returns:
        (B) uint64; each bit is a fair coin even for consecutive inputs.

    Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014 (the finaliser of SplitMix64).
    """
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(hashes: np.ndarray) -> np.ndarray:
    """Hashes as float64 numbers in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Shares of the splits, and the seed that decides which row goes where.

    Attributes:
        seed: Any integer.
        validation_share: Share of the rows in ``validation``.
        test_share: Share of the rows in ``test``; the rest is ``train``.
    """

    seed: int
    validation_share: float
    test_share: float

    def __call__(self, file: int, numbers: np.ndarray) -> np.ndarray:
        """Index into ``SPLITS`` of each row.

        Args:
            file: Index of the input file.
            numbers: (B) row numbers within that file.

        Returns:
            (B) uint8, a function of (seed, file, row number) alone.
        """
        key = splitmix64(splitmix64(np.array([self.seed & (2**64 - 1)], dtype=np.uint64)) ^ np.uint64(file))
        draw = uniform(splitmix64(splitmix64(numbers) ^ key))
        chosen = np.zeros(len(numbers), dtype=np.uint8)
        chosen[draw < self.test_share + self.validation_share] = SPLITS.index("validation")
        chosen[draw < self.test_share] = SPLITS.index("test")
        return chosen
