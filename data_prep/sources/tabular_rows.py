"""Columns of a table as raw rows: labels, tokens and numbers, and the rows where that fails."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa

from data_prep.columns import Column
from data_prep.sources.files import MAX_REJECTED_BYTES
from data_prep.sources.source import RawField, RawRows, Rejected

MISSING_NUMBERS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")


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


def rows_of(
    frame: pl.DataFrame,
    label: str | None,
    fields: tuple[RawField, ...],
    numbers: np.ndarray,
    lines: np.ndarray,
    kept: Mapping[str, pa.Array],
) -> RawRows:
    """Convert columns and set aside the rows that do not convert.

    Args:
        frame: At least the label and the fields; B rows.
        label: Name of the label column; None: the label of every row is 0.
        fields: The fields to keep.
        numbers: (B) row numbers within the file.
        lines: (B) the line of each in the file.
        kept: (B) values to carry along.
    """
    raw = {
        name: Column.of(frame[name]) for name in (*filter(None, [label]), *(field.name for field in fields))
    }
    labels = np.zeros(len(numbers), dtype=np.uint8)
    faults = []
    if label is not None:
        labels, is_label = _labels(raw[label])
        faults.append((label, ~is_label, "is not 0 or 1"))
    columns = {}
    for field in fields:
        values, wrong, what = _READERS[field.kind](raw[field.name].values)
        columns[field.name] = Column(values, raw[field.name].codes)
        faults.append((field.name, wrong, what))

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
    if not reasons:
        return rows
    good = np.ones(len(numbers), dtype=bool)
    good[list(reasons)] = False
    rejected = [
        Rejected(
            line=int(lines[row]),
            reason=reason,
            text=", ".join(f"{column.name}={_plain(column[row])}" for column in frame)[:MAX_REJECTED_BYTES],
        )
        for row, reason in sorted(reasons.items())
    ]
    return rows.filter(good).with_rejected(rejected)


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
        given &= ~text_of(raw).is_in(MISSING_NUMBERS).fill_null(raw.dtype == pl.String)
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
