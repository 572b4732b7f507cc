"""What a column that decides the split holds, in its own order: numbers, times, or times of day.

Text is compared as what it says, never by its characters: of ``9`` and ``10`` the number is the larger, and
``2024-4-9`` is before ``2024-04-10``. A form whose order nobody can tell (``11/04/2024``) is not read.

Times are seconds since 1970 and nanoseconds, so that no calendar year is out of reach. Numbers are compared
as float64, and exactly where those are equal.

Shape legend: V distinct values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import polars as pl
import pyarrow as pa

from data_prep.sources.forms import DECIMAL, MISSING_NUMBERS, text_of

Kind = Literal["number", "time", "time of day"]

DAY = 86_400
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
NO_ZONE = "no time zone"
# Year first: the only order of the parts that is the same everywhere.
_TIME = (
    r"^([0-9]{4})[-/]([0-9]{1,2})(?:[-/]([0-9]{1,2})"
    r"(?:[Tt ] *([0-9]{1,2})(?::([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?)?"
    r" *(Z|z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2}|[+-][0-9]{2})?)?)?$"
)
_TIME_OF_DAY = r"^([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?$"
_NUMBER = re.compile(DECIMAL)
_OFFSET = re.compile(r"([+-])([0-9]{2}):?([0-9]{2})?")


@dataclass(frozen=True)
class Values:
    """Some distinct values, read.

    Attributes:
        known: (V) bool: which could be read; the others have arbitrary numbers.
        high: (V) float64 numbers, or int64 seconds: since 1970 in UTC where the column's type has a zone,
            else as the clock shows them.
        low: (V) int64 nanoseconds.
        offsets: (V) int64 seconds that the clock of each is ahead of UTC; None: none has a zone of its own.
        zoned: (V) bool: which have a zone of their own.
        zone: The zone of the column's type.
        text: The text of the value of an index; None: it is missing.
    """

    known: np.ndarray
    high: np.ndarray
    low: np.ndarray
    zoned: np.ndarray
    offsets: np.ndarray
    zone: str | None
    text: Callable[[int], str | None]

    def zone_of(self, index: int) -> str:
        """The zone of one value, for comparison and messages."""
        if self.zone is not None:
            return self.zone
        if not self.zoned[index]:
            return NO_ZONE
        minutes = int(self.offsets[index]) // 60
        return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


@dataclass(frozen=True)
class Bound:
    """The first value of a split.

    Attributes:
        text: As the user wrote it.
        kind: What it is.
        number: The number; None: it is a time.
        seconds: As the clock shows them.
        nanoseconds: Beside the seconds.
        offset: Seconds that the clock is ahead of UTC; None: it has no zone.
    """

    text: str
    kind: Kind
    number: Decimal | None = None
    seconds: int = 0
    nanoseconds: int = 0
    offset: int | None = None

    @classmethod
    def of(cls, text: str) -> Bound:
        """Read what a user wrote.

        Raises:
            ValueError: it is neither a number nor a time.
        """
        stripped = text.strip()
        if _NUMBER.fullmatch(stripped) and abs(float(stripped)) < float("inf"):
            return cls(text, "number", number=Decimal(stripped))
        for kind in ("time", "time of day"):
            values = _of_texts(pl.Series([stripped]), kind)
            if values.known[0]:
                offset = int(values.offsets[0]) if values.zoned[0] else None
                return cls(
                    text, kind, seconds=int(values.high[0]), nanoseconds=int(values.low[0]), offset=offset
                )
        raise ValueError("neither a number nor a time that is written with the year first")

    @property
    def key(self) -> tuple[Decimal | int, int]:
        """Ascending among bounds of one kind."""
        if self.number is not None:
            return self.number, 0
        return self.seconds - (self.offset or 0), self.nanoseconds

    def at_most(self, values: Values) -> np.ndarray:
        """(V) which values are at this bound or above; arbitrary where they are not ``comparable``."""
        if self.number is not None:
            border = float(self.number)
            above: np.ndarray = values.high > border
            for index in np.flatnonzero((values.high == border) & values.known):
                above[index] = Decimal(values.text(int(index)) or 0) >= self.number
            return above
        seconds, high = self.seconds, values.high
        if self.offset is not None:
            seconds, high = seconds - self.offset, high - values.offsets
        elif values.zone is not None:
            seconds -= _offset(values.zone, seconds)
        later: np.ndarray = (high > seconds) | ((high == seconds) & (values.low >= self.nanoseconds))
        return later

    def comparable(self, values: Values) -> np.ndarray:
        """(V) which values can be compared with this bound: where it has a zone, those that have one."""
        if self.offset is None or values.zone is not None:
            return values.known
        with_zone: np.ndarray = values.known & values.zoned
        return with_zone


def kind_of(kind: pa.DataType) -> Kind | Literal["text"] | None:
    """What a column of this type holds; None: nothing that has an order."""
    types = pa.types
    if types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if any(
        is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    ):
        return "number"
    if types.is_date(kind) or types.is_timestamp(kind):
        return "time"
    if types.is_time(kind):
        return "time of day"
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    binaries = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return "text" if types.is_null(kind) or any(is_kind(kind) for is_kind in texts + binaries) else None


def read_values(values: pa.Array, kind: Kind) -> Values:
    """Read (V) distinct values of a type that holds ``kind`` or text."""
    if kind_of(values.type) == "text":
        return _of_texts(text_of(pl.Series(values)), kind)
    return _of_numbers(values) if kind == "number" else _of_times(values)


def unknown_zone(kind: pa.DataType) -> str | None:
    """The zone of a timestamp's type, if nobody here knows it."""
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        return None
    try:
        _zone(kind.tz)
    except (ZoneInfoNotFoundError, ValueError):
        return str(kind.tz)
    return None


def _of_numbers(values: pa.Array) -> Values:
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    high = values.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)

    def text(index: int) -> str | None:
        value = values[index].as_py()
        return None if value is None else str(value)

    return _values(np.isfinite(high), high, np.zeros(len(high), dtype=np.int64), text)


def _of_times(values: pa.Array) -> Values:
    kind = values.type
    unit = PER_SECOND["s" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit]
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    numbers = values.view(width).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    high = numbers * DAY if pa.types.is_date32(kind) else numbers // unit
    low = np.zeros_like(high) if pa.types.is_date32(kind) else numbers % unit * (PER_SECOND["ns"] // unit)
    known = ~values.is_null().to_numpy(zero_copy_only=False)
    zone = kind.tz if pa.types.is_timestamp(kind) else None

    def text(index: int) -> str | None:
        if not known[index]:
            return None
        shown = str(np.datetime64(int(high[index]), "s")) + ("" if zone is None else "Z")
        return shown.rpartition("T")[2] if pa.types.is_time(kind) else shown

    return _values(known, high, low, text, zone=zone)


def _of_texts(texts: pl.Series, kind: Kind) -> Values:
    stripped = texts.str.strip_chars()
    present = pl.select(pl.when(~stripped.is_in(MISSING_NUMBERS)).then(stripped)).to_series()
    if kind == "number":
        is_number = present.str.contains(DECIMAL).fill_null(False)
        numbers = pl.select(pl.when(is_number).then(present)).to_series().cast(pl.Float64)
        high = numbers.fill_null(np.nan).to_numpy()
        return _values(np.isfinite(high), high, np.zeros(len(high), dtype=np.int64), present.__getitem__)
    of_day = kind == "time of day"
    parts = present.str.extract_groups(_TIME_OF_DAY if of_day else _TIME).struct.unnest().get_columns()
    year, month, day = (
        [np.full(len(present), first) for first in (1970, 1, 1)] if of_day else _integers(parts[:3], 1)
    )
    clock = parts if of_day else parts[3:]
    hour, minute, second = _integers(clock[:3], 0)
    known = parts[0].is_not_null().to_numpy() & (month >= 1) & (month <= 12) & (year >= 1) & (day >= 1)
    known &= (hour <= 23) & (minute <= 59) & (second <= 60)
    months = ((year - 1970) * 12 + np.where(known, month - 1, 0)).astype("datetime64[M]")
    first, following = (each.astype("datetime64[D]").astype(np.int64) for each in (months, months + 1))
    known &= first + day <= following
    high = (first + day - 1) * DAY + hour * 3_600 + minute * 60 + second
    low = clock[3].fill_null("0").str.pad_end(9, "0").cast(pl.Int64).to_numpy()
    if of_day:
        return _values(known, high, low, present.__getitem__)
    sign, hours, minutes = clock[4].str.extract_groups(_OFFSET.pattern).struct.unnest().get_columns()
    ahead, more = _integers([hours, minutes], 0)
    offsets = np.where((sign == "-").fill_null(False).to_numpy(), -1, 1) * (ahead * 3_600 + more * 60)
    zoned = clock[4].is_not_null().to_numpy()
    return _values(known, high, low, present.__getitem__, zoned=zoned, offsets=offsets)


def _values(
    known: np.ndarray,
    high: np.ndarray,
    low: np.ndarray,
    text: Callable[[int], str | None],
    *,
    zoned: np.ndarray | None = None,
    offsets: np.ndarray | None = None,
    zone: str | None = None,
) -> Values:
    none = np.zeros(len(high), dtype=np.int64)
    return Values(
        known=known,
        high=high,
        low=low,
        zoned=none.astype(bool) if zoned is None else zoned,
        offsets=none if offsets is None else offsets,
        zone=zone,
        text=text,
    )


def _integers(parts: list[pl.Series], missing: int) -> list[np.ndarray]:
    return [part.cast(pl.Int64).fill_null(missing).to_numpy() for part in parts]


def _offset(zone: str, seconds: int) -> int:
    """Seconds that the clock of a zone is ahead of UTC when it shows some seconds since 1970."""
    shown = datetime(1970, 1, 1) + timedelta(seconds=seconds)
    ahead = shown.replace(tzinfo=_zone(zone)).utcoffset()
    return 0 if ahead is None else int(ahead.total_seconds())


def _zone(name: str) -> tzinfo:
    if name in ("UTC", "Z"):
        return UTC
    if found := _OFFSET.fullmatch(name):
        sign, hours, minutes = found.groups()
        ahead = timedelta(hours=int(hours), minutes=int(minutes or 0))
        return timezone(-ahead if sign == "-" else ahead)
    return ZoneInfo(name)
