"""Which split a row belongs to: by chance, by file, or by a column of time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import polars as pl

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


class SplitRule(ABC):
    """Assigns rows to splits: a function of the input and the options alone."""

    @abstractmethod
    def __call__(self, file: int, numbers: np.ndarray, columns: Mapping[str, pl.Series]) -> np.ndarray:
        """Index into ``SPLITS`` of each row.

        Args:
            file: Index of the input file.
            numbers: (B) row numbers within that file.
            columns: Of every column in ``reads``, the (B) values, none missing.

        Returns:
            (B) uint8.
        """

    @property
    def reads(self) -> tuple[str, ...]:
        """The raw columns that decide."""
        return ()


@dataclass(frozen=True, kw_only=True)
class RandomSplit(SplitRule):
    """Shares of the rows, at random: a function of (seed, file, row number).

    Attributes:
        seed: Any integer.
        validation_share: Share of the rows in ``validation``.
        test_share: Share of the rows in ``test``; the rest is ``train``.
    """

    seed: int
    validation_share: float
    test_share: float

    def __call__(
        self, file: int, numbers: np.ndarray, columns: Mapping[str, pl.Series] = MappingProxyType({})
    ) -> np.ndarray:
        """By a hash of where the row stands."""
        key = splitmix64(splitmix64(np.array([self.seed & (2**64 - 1)], dtype=np.uint64)) ^ np.uint64(file))
        draw = uniform(splitmix64(splitmix64(numbers) ^ key))
        chosen = np.zeros(len(numbers), dtype=np.uint8)
        chosen[draw < self.test_share + self.validation_share] = SPLITS.index("validation")
        chosen[draw < self.test_share] = SPLITS.index("test")
        return chosen


@dataclass(frozen=True, kw_only=True)
class LastFileSplit(SplitRule):
    """The last file, one day of a log with a file a day, is held out; the others are ``train``.

    Attributes:
        last_file: Its index.
        held_out: How its rows are shared out, at random; what is left of them is not ``train`` but
            ``test``.
    """

    last_file: int
    held_out: RandomSplit

    def __call__(
        self, file: int, numbers: np.ndarray, columns: Mapping[str, pl.Series] = MappingProxyType({})
    ) -> np.ndarray:
        """By file."""
        if file != self.last_file:
            return np.zeros(len(numbers), dtype=np.uint8)
        chosen = self.held_out(file, numbers)
        chosen[chosen == TRAIN] = SPLITS.index("test")
        return chosen


@dataclass(frozen=True, kw_only=True)
class ColumnSplit(SplitRule):
    """By a column that grows with time: earlier rows are ``train``, later ones held out.

    Numbers are compared as numbers, tokens as texts (dates and hours of equal length).

    Attributes:
        column: The raw column.
        validation_from: First value of ``validation``; None: there is none.
        test_from: First value of ``test``; None: there is none.
    """

    column: str
    validation_from: str | None
    test_from: str | None

    @property
    def reads(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def __call__(self, file: int, numbers: np.ndarray, columns: Mapping[str, pl.Series]) -> np.ndarray:
        """By value."""
        values = columns[self.column]
        chosen = np.zeros(len(numbers), dtype=np.uint8)
        for split, start in (("validation", self.validation_from), ("test", self.test_from)):
            if start is not None:
                bound = float(start) if values.dtype.is_numeric() else start
                chosen[(values >= bound).to_numpy()] = SPLITS.index(split)
        return chosen
