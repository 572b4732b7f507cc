"""Which split a row belongs to: by chance, by file, or by a column of time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import polars as pl

SPLITS = ("train", "validation", "test")
TRAIN = 0
WHOLE_NUMBER = re.compile(r"^-?[0-9]{1,18}$")

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

    def faults(self, values: pl.Series) -> tuple[pl.Series, str]:
        """Which of (V) values of a column in ``reads`` (tokens as texts) cannot be placed, and why."""
        return pl.repeat(False, len(values), eager=True), ""


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

    Numbers are compared as numbers, and so are tokens where the bounds are whole numbers (days,
    hours, seconds); other tokens as texts (dates), of which the bounds may be beginnings.

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

    @property
    def bounds(self) -> dict[str, str]:
        """By split, its first value."""
        named = {"validation": self.validation_from, "test": self.test_from}
        return {split: start for split, start in named.items() if start is not None}

    @property
    def whole_numbers(self) -> bool:
        """Whether the bounds are whole numbers."""
        return all(WHOLE_NUMBER.fullmatch(start) for start in self.bounds.values())

    def faults(self, values: pl.Series) -> tuple[pl.Series, str]:
        """Which of (V) values cannot be placed, and why."""
        if values.dtype.is_numeric():
            return values.is_null(), "is missing, and decides the split"
        if self.whole_numbers:
            readable = values.str.contains(WHOLE_NUMBER.pattern).fill_null(False)
            return ~readable, "is not a whole number, as the first values of the splits are"
        shortest = min(map(len, self.bounds.values()))
        too_short = (values.str.len_chars() < shortest).fill_null(True)
        return too_short, "is missing, or shorter than the first values of the splits"

    def __call__(self, file: int, numbers: np.ndarray, columns: Mapping[str, pl.Series]) -> np.ndarray:
        """By value."""
        values = columns[self.column]
        if not values.dtype.is_numeric() and self.whole_numbers:
            values = values.cast(pl.Int64)
        chosen = np.zeros(len(numbers), dtype=np.uint8)
        for split, start in self.bounds.items():
            bound: float | str = start
            if values.dtype.is_numeric():
                bound = int(start) if WHOLE_NUMBER.fullmatch(start) else float(start)
            chosen[(values >= bound).to_numpy()] = SPLITS.index(split)
        return chosen
