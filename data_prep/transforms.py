"""What can become of a raw value: a token of a categorical field, or a number of a numeric one.

Transforms act on the distinct values of a column, never on its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from afm_dist.dataset.manifest import FieldKind
from data_prep.columns import numbers_of, series_of

SATURDAY = 6
LOWEST_BUCKET = -(2.0**62)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """One of the transforms.

    Attributes:
        reads: Kind of the raw column.
        makes: Kind of the field.
        apply: From (V) distinct raw values and the time format to (V) tokens or Float64 numbers;
            missing values stay missing.
        standardised: Numbers only: whether the training split's mean is subtracted and its
            deviation divided out.
        timed: Whether the raw value is the text of a point in time, whose format has to be known.
    """

    reads: FieldKind
    makes: FieldKind
    apply: Callable[[pl.Series, str], pl.Series]
    standardised: bool = False
    timed: bool = False


def signed_log(values: np.ndarray) -> np.ndarray:
    """``sign(x)·ln(1+|x|)`` in float64: linear near zero, logarithmic in the tails, odd."""
    transformed: np.ndarray = np.copysign(np.log1p(np.abs(values)), values)
    return transformed


def log_square_bucket(values: np.ndarray) -> np.ndarray:
    """``⌊(ln x)²⌋`` for x > 2, else ``⌊x⌋``: the buckets of the Criteo x4 protocol."""
    large = values > 2
    buckets: np.ndarray = np.floor(np.where(large, np.log(np.where(large, values, 1.0)) ** 2, values))
    return buckets


def _of_numbers(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[pl.Series, str], pl.Series]:
    def apply(values: pl.Series, time_format: str) -> pl.Series:
        numbers, missing = numbers_of(values)
        return series_of(function(numbers if missing is None else np.where(missing, 0.0, numbers)), missing)

    return apply


def _as_they_are(values: pl.Series, time_format: str) -> pl.Series:
    return values


def _bucket_tokens(values: pl.Series, time_format: str) -> pl.Series:
    """Int64 tokens; below -2^62, which they could not hold, all numbers share a bucket."""
    buckets = _of_numbers(lambda numbers: np.maximum(log_square_bucket(numbers), LOWEST_BUCKET))
    return buckets(values, time_format).cast(pl.Int64)


def _of_times(part: Callable[[pl.Expr], pl.Expr]) -> Callable[[pl.Series, str], pl.Series]:
    def apply(values: pl.Series, time_format: str) -> pl.Series:
        texts, spelled = pl.lit(values.cast(pl.String)), time_format
        if "%H" in spelled and "%M" not in spelled:
            # An hour alone is no time of day to the parser; the space ends an hour of one digit.
            texts, spelled = texts + " 00", spelled + " %M"
        times = texts.str.strptime(pl.Datetime, spelled, strict=False)
        return pl.select(part(times)).to_series().cast(pl.Int64)

    return apply


TRANSFORMS: Mapping[str, Transform] = {
    "token": Transform(reads="categorical", makes="categorical", apply=_as_they_are),
    "hour-of-day": Transform(
        reads="categorical", makes="categorical", timed=True, apply=_of_times(lambda time: time.dt.hour())
    ),
    "weekday": Transform(
        reads="categorical", makes="categorical", timed=True, apply=_of_times(lambda time: time.dt.weekday())
    ),
    "weekend": Transform(
        reads="categorical",
        makes="categorical",
        timed=True,
        apply=_of_times(lambda time: time.dt.weekday() >= SATURDAY),
    ),
    "log-square-bucket": Transform(reads="numeric", makes="categorical", apply=_bucket_tokens),
    "log": Transform(reads="numeric", makes="numeric", standardised=True, apply=_of_numbers(signed_log)),
    "log1p": Transform(
        reads="numeric",
        makes="numeric",
        apply=_of_numbers(lambda values: np.log1p(np.maximum(values, 0.0))),
    ),
    "number": Transform(reads="numeric", makes="numeric", standardised=True, apply=_as_they_are),
}
"""By name, as presets and the manifest spell it."""

DEFAULT: Mapping[FieldKind, str] = {"categorical": "token", "numeric": "log"}

_SPELLED = re.compile(r"(?P<name>[a-z0-9-]+)(?:\((?P<format>.*)\))?\Z")


@dataclass(frozen=True, kw_only=True)
class FieldRule:
    """How one field is made.

    Attributes:
        name: Of the field.
        column: The raw column.
        transform: Name of the transform.
        time_format: How a point in time is written (``%y%m%d%H``); empty: it is none.
    """

    name: str
    column: str
    transform: str
    time_format: str = ""

    @property
    def kind(self) -> FieldKind:
        """What the field is to a model."""
        return TRANSFORMS[self.transform].makes

    @property
    def keeps_tokens(self) -> bool:
        """Whether the field's tokens are the raw column's own."""
        return self.transform == "token"

    @property
    def spelled(self) -> str:
        """Transform and format as the manifest holds them."""
        return f"{self.transform}({self.time_format})" if self.time_format else self.transform

    @property
    def timed(self) -> bool:
        """Whether ``apply`` takes texts, of points in time."""
        return TRANSFORMS[self.transform].timed

    def apply(self, values: pl.Series) -> pl.Series:
        """(V) distinct raw values, or their texts where ``timed``, to (V) tokens or numbers."""
        return TRANSFORMS[self.transform].apply(values, self.time_format)


def spelled_rule(name: str, column: str, spelled: str) -> FieldRule:
    """The inverse of ``FieldRule.spelled``.

    Raises:
        ValueError: no such transform.
    """
    match = _SPELLED.match(spelled)
    if match is None or match["name"] not in TRANSFORMS:
        raise ValueError(f"transform {spelled!r} is unknown; choose from {', '.join(TRANSFORMS)}")
    return FieldRule(name=name, column=column, transform=match["name"], time_format=match["format"] or "")
