"""How the values of a column are written: as integers, as decimal numbers, or as something else.

What a column is (ids or numbers) is inferred from its first rows, and checked against all of them: each
form is noted with the first value that has it. A token is the text of a value; where a column holds
numbers, an integer has one text however it is written, so that ``7``, ``7.0`` and `` 7`` are one id.

Shape legend: B rows, V distinct values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import polars as pl

MISSING_NUMBERS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")

Form = Literal[
    "blank", "missing", "integer", "long integer", "whole decimal", "lost digits", "fraction", "text"
]
FORMS: tuple[Form, ...] = get_args(Form)
_BLANK, _MISSING, _INTEGER, _LONG, _WHOLE, _LOST, _FRACTION, _TEXT = range(len(FORMS))

# What a float64 holds: integers of 15 digits, and no odd one from 2^53 on; a float32 from 2^24 on.
EXACT: Mapping[type[pl.DataType], float] = {
    pl.Float64: 2.0**53,
    pl.Float32: 2.0**24,
    pl.Float16: 2.0**11,
}
# A float holds 15 digits: a longer integer is an identifier.
_DIGITS = r"^[+-]?[0-9]+$"
_MANY_DIGITS = r"^[+-]?[0-9]{16,}$"
DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_SHORT_INTEGER = r"^(0|-?[1-9][0-9]{0,14})$"
_PLAIN = r"^(0|-?[1-9][0-9]*)$"
_POINT_ZERO = r"^(0|-?[1-9][0-9]{0,14})\.0*$"
_WRITTEN_INTEGER = re.compile(r"([+-]?)([0-9]+)")
# With a point: 1e5 may be a code.
_WRITTEN_WHOLE = re.compile(r"[+-]?[0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?")

Integers = Literal["as written", "as text", "as numbers"]
"""How a categorical column spells integers: as they stand; ``7.0`` as ``7``; ``007`` as ``7``, too."""


@dataclass(frozen=True)
class Example:
    """A value and where it stands: ``file:line``."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.text!r} ({self.place})"


ColumnForms = Mapping[Form, Example]
Forms = Mapping[str, ColumnForms]
NO_FORMS: Forms = MappingProxyType({})


def merged(several: Iterable[Forms]) -> dict[str, dict[Form, Example]]:
    """The first example of each form of each column, in the order in which these occur."""
    result: dict[str, dict[Form, Example]] = {}
    for forms in several:
        for name, examples in forms.items():
            known = result.setdefault(name, {})
            for form, example in examples.items():
                known.setdefault(form, example)
    return result


def text_of(column: pl.Series) -> pl.Series:
    """Any column as text; bytes that are not UTF-8 become null.

    Empty text is the same as missing.
    """
    if column.dtype == pl.Binary:
        try:
            column = column.cast(pl.String)
        except pl.exceptions.ComputeError:
            decoded = [_decode(value) for value in column]
            column = pl.Series(column.name, decoded, dtype=pl.String)
    elif column.dtype != pl.String:
        column = column.cast(pl.String)
    return pl.select(pl.when(column != "").then(column)).to_series().rename(column.name)


def _decode(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def classify(values: pl.Series) -> np.ndarray:
    """(V) index into ``FORMS`` of each of V texts or floating-point numbers."""
    if values.dtype.is_float():
        return _classify_floats(values)
    codes = np.full(len(values), _INTEGER, dtype=np.uint8)
    codes[values.is_null().to_numpy()] = _BLANK
    odd = ~values.str.contains(_SHORT_INTEGER).fill_null(True)
    if odd.any():
        codes[odd.to_numpy()] = _classify_texts(values.filter(odd).str.strip_chars())
    return codes


def _classify_texts(texts: pl.Series) -> np.ndarray:
    codes = np.full(len(texts), _TEXT, dtype=np.uint8)
    codes[texts.is_in(MISSING_NUMBERS).to_numpy()] = _MISSING
    codes[(texts == "").to_numpy()] = _BLANK
    decimal = texts.str.contains(DECIMAL).to_numpy()
    if decimal.any():
        codes[decimal] = _classify_floats(texts.filter(pl.Series(decimal)).cast(pl.Float64, strict=False))
        codes[texts.str.contains(_DIGITS).to_numpy()] = _INTEGER
        codes[texts.str.contains(_MANY_DIGITS).to_numpy()] = _LONG
    return codes


def _classify_floats(numbers: pl.Series) -> np.ndarray:
    exact = EXACT[type(numbers.dtype)]
    values = numbers.cast(pl.Float64).fill_null(np.nan).to_numpy()
    with np.errstate(invalid="ignore"):
        whole = np.floor(values) == values
        codes = np.where(whole, np.where(np.abs(values) >= exact, _LOST, _WHOLE), _FRACTION).astype(np.uint8)
    codes[~np.isfinite(values)] = _BLANK
    return codes


def forms_of(
    classes: np.ndarray, codes: np.ndarray, texts: pl.Series, lines: np.ndarray, path: str
) -> dict[Form, Example]:
    """The first example of each form among B rows, in their order.

    Args:
        classes: (V) what ``classify`` said of the distinct values.
        codes: (B) which of them each row holds.
        texts: (V) the distinct values.
        lines: (B) the line of each row.
        path: The file, for messages.
    """
    of_rows = classes[codes]
    present = np.flatnonzero(np.bincount(of_rows, minlength=len(FORMS)))
    examples: dict[Form, Example] = {}
    for row, index in sorted((int(np.argmax(of_rows == index)), index) for index in present):
        value = texts[int(codes[row])]
        text = "" if value is None else str(value)[:40]
        examples[FORMS[index]] = Example(f"{path}:{lines[row]}", text)
    return examples


def plain_integers(tokens: pl.Series, how: Integers) -> pl.Series:
    """Tokens (V) with one text for each integer that a float64 holds; blanks are missing.

    Args:
        tokens: Texts, null where missing.
        how: ``as numbers`` drops leading zeros too.
    """
    if how == "as written" or tokens.str.contains(_PLAIN).fill_null(True).all():
        return tokens
    made = tokens.str.strip_chars()
    made = pl.select(pl.when(made != "").then(made.str.replace(_POINT_ZERO, "$1"))).to_series()
    odd = made.str.contains(r"^[+-]?[0-9]") & ~made.str.contains(_PLAIN)
    if odd.fill_null(False).any():
        found = made.filter(odd.fill_null(False)).unique()
        spelled = {text: _plain(text, keep_zeros=how == "as text") for text in found}
        made = made.replace({text: plain for text, plain in spelled.items() if plain is not None})
    # Text is as it stands, with its blanks.
    is_number = made.is_null() | made.str.contains(DECIMAL)
    return pl.select(pl.when(is_number).then(made).otherwise(tokens)).to_series().rename(tokens.name)


def _plain(text: str, *, keep_zeros: bool) -> str | None:
    """The text of the integer that is written in another way; None: it is no integer."""
    if integer := _WRITTEN_INTEGER.fullmatch(text):
        sign, digits = integer.groups()
        digits = digits if keep_zeros else digits.lstrip("0") or "0"
        return ("-" if sign == "-" and digits.strip("0") else "") + digits
    if _WRITTEN_WHOLE.fullmatch(text) and abs(float(text)) < EXACT[pl.Float64]:
        number = Decimal(text)
        return str(int(number)) if number == number.to_integral_value() else None
    return None


def not_plain(tokens: pl.Series) -> str | None:
    """The first of (V) tokens that stands for an integer, but is not its plain text: ``007``, ``7.0``."""
    odd = tokens.str.contains(r"^\s*[+-]?[0-9]") & ~tokens.str.contains(_PLAIN)
    for text in tokens.filter(odd.fill_null(False)):
        if _plain(text.strip(), keep_zeros=False) is not None:
            return str(text)
    return None
