"""Which split a row belongs to: by chance, by file, or by a column that grows with time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from afm_dist.errors import OptionError
from data_prep.split_seen import ColumnRange
from data_prep.split_values import Bound, Kind, Values, kind_of, read_values, unknown_zone

SPLITS = ("train", "validation", "test")
TRAIN = 0
NOWHERE = 255

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
class RowsToPlace:
    """What splits are decided by.

    Attributes:
        numbers: (B) row numbers within the file.
        lines: (B) the line of each.
        kept: By name, the (B) values of the columns that decide.
    """

    numbers: np.ndarray
    lines: np.ndarray
    kept: Mapping[str, pa.Array]


@dataclass(frozen=True)
class Placement:
    """Where B rows go.

    Attributes:
        splits: (B) index into ``SPLITS``; ``NOWHERE`` for a row that cannot be placed.
        reason: Why it cannot, of a row.
        seen: What the column that decides held.
    """

    splits: np.ndarray
    reason: Callable[[int], str] = str
    seen: ColumnRange = field(default_factory=ColumnRange)


class SplitRule(ABC):
    """Assigns rows to splits: a function of the input and the options alone."""

    @abstractmethod
    def __call__(self, file: int, numbers: np.ndarray, columns: Mapping[str, pa.Array]) -> np.ndarray:
        """Index into ``SPLITS`` of each row.

        Args:
            file: Index of the input file.
            numbers: (B) row numbers within that file.
            columns: Of every column in ``reads``, the (B) values.

        Returns:
            (B) uint8; ``NOWHERE`` for a row that cannot be placed.
        """

    @property
    def reads(self) -> tuple[str, ...]:
        """The raw columns that decide."""
        return ()

    def place(self, file: int, rows: RowsToPlace) -> Placement:
        """Which split each of B rows belongs to, and what was seen."""
        return Placement(self(file, rows.numbers, rows.kept))

    def check_type(self, column: str, kind: pa.DataType, path: str) -> None:
        """Refuse a column that cannot decide because of its type.

        Raises:
            OptionError: naming the column, its type and the file.
        """
        return


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
        self, file: int, numbers: np.ndarray, columns: Mapping[str, pa.Array] = MappingProxyType({})
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
        self, file: int, numbers: np.ndarray, columns: Mapping[str, pa.Array] = MappingProxyType({})
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

    Values and bounds are compared as numbers, as times or as times of day: as what the bounds are.

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
    def bounds(self) -> dict[str, Bound]:
        """By split, its first value."""
        given = {"validation": self.validation_from, "test": self.test_from}
        bounds = {}
        for split, text in given.items():
            if text is None:
                continue
            try:
                bounds[split] = Bound.of(text)
            except ValueError as error:
                raise OptionError(
                    f"--{split}-from {text}: {error}; write 2024-04-11, 2024-04-11 09:30 or a number, and "
                    f"the values of column {self.column!r} so, too"
                ) from error
        return bounds

    def check_bounds(self) -> None:
        """See that the first values of the splits have an order.

        Raises:
            OptionError: one is neither number nor time, or they do not compare, or are not in order.
        """
        bounds = self.bounds
        if len(bounds) == 2:
            _check_order(bounds["validation"], bounds["test"])

    @property
    def kind(self) -> Kind:
        """What the bounds are."""
        return next(iter(self.bounds.values())).kind

    def check_type(self, column: str, kind: pa.DataType, path: str) -> None:
        """Refuse a type without an order, or with another than the bounds have."""
        bound, holds = next(iter(self.bounds.values())), kind_of(kind)
        if holds is None:
            raise OptionError(
                f"--split-column {column}: it has type {kind} in {path}, which is neither number nor time "
                "nor text; name another column"
            )
        if holds not in ("text", bound.kind):
            raise OptionError(
                f"--split-column {column}: it has type {kind} in {path}, a {holds}, but {bound.text!r} is a "
                f"{bound.kind}; write the first values of the splits as a {holds}"
            )
        zoned = pa.types.is_timestamp(kind) and kind.tz is not None
        if holds == "time" and bound.offset is not None and not zoned:
            raise OptionError(
                f"--split-column {column}: its times have no time zone in {path}, but {bound.text!r} has "
                "one; leave it out"
            )
        if bound.offset is None and (zone := unknown_zone(kind)) is not None:
            raise OptionError(
                f"--split-column {column}: its time zone {zone!r} in {path} is not known here; write the "
                "first values of the splits with a time zone, such as 2024-04-11T00:00+00:00"
            )

    def place(self, file: int, rows: RowsToPlace) -> Placement:
        """By value: each distinct one is read once."""
        encoded = rows.kept[self.column].dictionary_encode("encode")
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        bounds = self.bounds
        values = read_values(encoded.dictionary, self.kind)
        chosen = np.zeros(len(values.known), dtype=np.uint8)
        known = values.known
        for split, bound in bounds.items():
            known = known & bound.comparable(values)
            chosen[bound.at_most(values)] = SPLITS.index(split)
        chosen[~known] = NOWHERE
        has_zone = any(bound.offset is not None for bound in bounds.values())
        return Placement(
            splits=chosen[codes],
            reason=lambda row: self._fault(values, int(codes[row]), has_zone),
            seen=ColumnRange.of(values, known, codes, rows.lines, zones=self.kind == "time" and not has_zone),
        )

    def __call__(self, file: int, numbers: np.ndarray, columns: Mapping[str, pa.Array]) -> np.ndarray:
        """By value."""
        return self.place(file, RowsToPlace(numbers=numbers, lines=numbers, kept=columns)).splits

    def _fault(self, values: Values, index: int, has_zone: bool) -> str:
        text = values.text(index)
        if text is None:
            return f"{self.column} is missing, and decides the split"
        if values.known[index] and has_zone:
            return f"{self.column} {text[:40]!r} has no time zone, as the first values of the splits have"
        year_first = ", written with the year first" if self.kind == "time" else ""
        what = f"is not a {self.kind}{year_first}, as the first values of the splits are"
        return f"{self.column} {text[:40]!r} {what}"


def _check_order(validation: Bound, test: Bound) -> None:
    """Refuse bounds between which nothing lies, or which do not compare.

    Raises:
        OptionError: naming both.
    """
    both = f"--validation-from {validation.text} and --test-from {test.text}"
    if validation.kind != test.kind:
        raise OptionError(f"{both}: one is a {validation.kind}, the other a {test.kind}; write both alike")
    if (validation.offset is None) != (test.offset is None):
        raise OptionError(f"{both}: one has a time zone, the other has none; write both alike")
    if validation.key >= test.key:
        raise OptionError(f"{both} leave nothing to validate on; validation comes before test")
