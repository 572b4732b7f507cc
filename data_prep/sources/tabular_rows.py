"""Columns of a table as raw rows: labels, tokens and numbers, and the rows where that fails."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from data_prep.sources.source import RawField, RawRows, Rejected

MISSING_NUMBERS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")
MAX_TEXT = 2_000


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
    columns: pl.DataFrame,
    label: str,
    fields: tuple[RawField, ...],
    numbers: np.ndarray,
    line_of: Callable[[int], int],
) -> RawRows:
    """Convert columns and set aside the rows that do not convert.

    Args:
        columns: At least the label and the fields; B rows.
        label: Name of the label column.
        fields: The fields to keep.
        numbers: (B) row numbers within the file.
        line_of: Line in the file of a row number, for messages.
    """
    reasons: dict[int, str] = {}

    def reject(where: pl.Series, why: Callable[[int], str]) -> None:
        for row in np.flatnonzero(where.to_numpy()):
            reasons.setdefault(int(row), why(int(row)))

    labels = _numbers(columns[label])
    is_label = labels.is_in([0.0, 1.0]).fill_null(False)
    reject(~is_label, lambda row: f"label {_show(columns[label][row])} is not 0 or 1")
    converted = {label: pl.select(pl.when(is_label).then(labels)).to_series().cast(pl.UInt8)}
    for field in fields:
        raw = columns[field.name]
        if field.kind == "categorical":
            tokens = text_of(raw)
            if raw.dtype == pl.Binary:
                undecoded = tokens.is_null() & raw.is_not_null() & (raw.bin.size() > 0)
                reject(undecoded, lambda row, f=field, r=raw: f"{f.name} {_show(r[row])} is not UTF-8")  # type: ignore[misc]
            converted[field.name] = tokens
        else:
            values = _numbers(raw)
            given = raw.is_not_null()
            if raw.dtype in (pl.Binary, pl.String):
                given &= ~text_of(raw).is_in(MISSING_NUMBERS).fill_null(raw.dtype == pl.String)
            elif raw.dtype.is_float():
                given &= raw.is_not_nan()
            wrong = given & ~values.is_finite().fill_null(False)
            reject(wrong, lambda row, f=field, r=raw: f"{f.name} {_show(r[row])} is not a finite number")  # type: ignore[misc]
            converted[field.name] = pl.select(pl.when(values.is_finite()).then(values)).to_series()
    frame = pl.DataFrame({name: column.rename(name) for name, column in converted.items()})
    if not reasons:
        return RawRows(frame=frame, numbers=numbers)
    good = np.ones(len(numbers), dtype=bool)
    good[list(reasons)] = False
    rejected = [
        Rejected(
            line=line_of(int(numbers[row])),
            reason=reason,
            text=", ".join(f"{column.name}={_plain(column[row])}" for column in columns)[:MAX_TEXT],
        )
        for row, reason in sorted(reasons.items())
    ]
    return RawRows(frame=frame.filter(pl.Series(good)), numbers=numbers[good], rejected=rejected)


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
