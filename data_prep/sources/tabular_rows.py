"""Columns of a table as raw rows: labels, tokens and numbers, and the rows where that fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from data_prep.columns import Column
from data_prep.sources.files import MAX_REJECTED_BYTES
from data_prep.sources.forms import (
    MISSING_NUMBERS,
    Example,
    Form,
    Integers,
    classify,
    forms_of,
    plain_integers,
    text_of,
)
from data_prep.sources.source import RawField, RawRows, Rejected

LARGE = 1e15


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a column of a table is read.

    Attributes:
        field: Its name and kind.
        integers: How the tokens spell integers that are written as text.
        watched: Of which of its values to note the forms; ``large``: of numbers of 16 digits and more.
    """

    field: RawField
    integers: Integers = "as written"
    watched: Literal["none", "large", "all"] = "none"


def rows_of(
    frame: pl.DataFrame,
    label: str | None,
    readings: Sequence[Reading],
    numbers: np.ndarray,
    lines: np.ndarray,
    kept: Mapping[str, pa.Array],
    path: str,
) -> RawRows:
    """Convert columns and set aside the rows that do not convert.

    Args:
        frame: At least the label and the fields; B rows.
        label: Name of the label column; None: the label of every row is 0.
        readings: The fields to keep.
        numbers: (B) row numbers within the file.
        lines: (B) the line of each in the file.
        kept: (B) values to carry along.
        path: The file, for messages.
    """
    fields = [reading.field for reading in readings]
    raw = {
        name: Column.of(frame[name]) for name in (*filter(None, [label]), *(field.name for field in fields))
    }
    labels = np.zeros(len(numbers), dtype=np.uint8)
    faults = []
    if label is not None:
        labels, is_label = _labels(raw[label])
        faults.append((label, ~is_label, "is not 0 or 1"))
    columns = {}
    for reading in readings:
        name, kind = reading.field.name, reading.field.kind
        values, wrong, what = _READERS[kind](raw[name].values)
        if kind == "categorical" and raw[name].values.dtype in (pl.Binary, pl.String):
            values = plain_integers(values, reading.integers)
        columns[name] = Column(values, raw[name].codes)
        faults.append((name, wrong, what))

    reasons: dict[int, str] = {}
    for name, is_fault, what in faults:
        if is_fault.any():
            codes = raw[name].codes
            for row in np.flatnonzero(is_fault.to_numpy()[codes]):
                shown = _show(raw[name].values[int(codes[row])])
                subject = "label" if name == label else name
                reasons.setdefault(int(row), f"{subject} {shown} {what}")
    rows = RawRows(
        labels=labels,
        columns=columns,
        numbers=numbers,
        lines=lines,
        kept=kept,
    )
    good = np.ones(len(numbers), dtype=bool)
    good[list(reasons)] = False
    rows = replace(rows, forms=_watched(readings, raw, columns, lines, path, good))
    if not reasons:
        return rows
    rejected = [
        Rejected(
            line=int(lines[row]),
            reason=reason,
            text=", ".join(f"{column.name}={_plain(column[row])}" for column in frame)[:MAX_REJECTED_BYTES],
        )
        for row, reason in sorted(reasons.items())
    ]
    return rows.filter(good).with_rejected(rejected)


def forms_among(column: Column, lines: np.ndarray, path: str) -> dict[Form, Example]:
    """How the values of B rows are written, with the first example of each form.

    Args:
        column: B raw values.
        lines: (B) their lines.
        path: The file, for messages.
    """
    values = column.values if column.values.dtype.is_float() else text_of(column.values)
    return forms_of(classify(values), column.codes, values, lines, path)


def _watched(
    readings: Sequence[Reading],
    raw: Mapping[str, Column],
    made: Mapping[str, Column],
    lines: np.ndarray,
    path: str,
    good: np.ndarray,
) -> dict[str, dict[Form, Example]]:
    """The forms of the columns that are watched, among the good rows."""
    forms = {}
    for reading in readings:
        name, wanted = reading.field.name, good
        if reading.watched == "large":
            large = (made[name].values.abs() >= LARGE).fill_null(False).to_numpy()
            wanted = good & large[made[name].codes] if large.any() else np.zeros_like(good)
        if reading.watched != "none" and wanted.any():
            forms[name] = forms_among(raw[name].filter(wanted), lines[wanted], path)
    return forms


def _labels(column: Column) -> tuple[np.ndarray, pl.Series]:
    """(B) labels, 0 where there is none, and (V) which of the distinct values are labels."""
    numbers = _numbers(column.values)
    labels = numbers.fill_null(0.0).cast(pl.UInt8, strict=False).fill_null(0).to_numpy()[column.codes]
    return labels, numbers.is_in([0.0, 1.0]).fill_null(False)


def _tokens(raw: pl.Series) -> tuple[pl.Series, pl.Series, str]:
    """Distinct raw values as tokens, which of them are none, and why."""
    tokens = text_of(raw)
    if raw.dtype not in (pl.Binary, pl.String):
        return tokens, pl.repeat(False, len(raw), eager=True), ""
    lengths = raw.bin.size() if raw.dtype == pl.Binary else raw.str.len_bytes()
    undecoded = tokens.is_null() & (lengths > 0).fill_null(False)
    with_nul = tokens.str.contains("\0", literal=True).fill_null(False)
    return tokens, undecoded | with_nul, "is not UTF-8 text without NUL bytes"


def _finite_numbers(raw: pl.Series) -> tuple[pl.Series, pl.Series, str]:
    """Distinct raw values as finite numbers, which of them are none, and why."""
    values = _numbers(raw)
    given = raw.is_not_null()
    if raw.dtype in (pl.Binary, pl.String):
        text = text_of(raw).str.strip_chars()
        given &= ~text.is_in(MISSING_NUMBERS).fill_null(raw.dtype == pl.String)
    elif raw.dtype.is_float():
        given &= raw.is_not_nan()
    is_finite = values.is_finite().fill_null(False)
    finite = pl.select(pl.when(is_finite).then(values)).to_series()
    return finite, given & ~is_finite, "is not a finite number"


_READERS = {"categorical": _tokens, "numeric": _finite_numbers}


def _numbers(column: pl.Series) -> pl.Series:
    """A column as Float64, null where it is not a number."""
    if column.dtype == pl.Binary:
        column = text_of(column)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    return column.cast(pl.Float64, strict=False)


def _plain(value: object) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _show(value: object) -> str:
    return "missing" if value is None else repr(_plain(value)[:40])
