"""Columns of raw values, each distinct value held once.

A click log has many times more rows than a column has distinct values. What is done per distinct
value (parsing, checking, transforming, looking up its id) costs next to nothing; what is left to
do per row is to find equal values once, and later to replace small codes by ids.

Shape legend: B rows, V distinct values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """The values of B rows.

    Attributes:
        values: (V) raw values, null for a missing one; tokens or Float64.
        codes: (B) integers: row b holds ``values[codes[b]]``.
    """

    values: pl.Series
    codes: np.ndarray

    @classmethod
    def of(cls, values: pl.Series) -> Column:
        """From one value per row."""
        array = values.to_arrow()
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        encoded = array.dictionary_encode("encode")
        return cls(pl.Series(values.name, encoded.dictionary), encoded.indices.to_numpy())

    def rows(self) -> pl.Series:
        """(B) one value per row."""
        return self.values.gather(self.codes)

    def filter(self, wanted: np.ndarray) -> Column:
        """The rows where ``wanted`` (B) is true; values that no row holds any more may remain."""
        return Column(self.values, self.codes[wanted])

    def sorted(self) -> Column:
        """The same rows, with strictly ascending values (the missing one first) and small codes."""
        if self.values.dtype.is_numeric():
            order, is_new = _order_of_numbers(*numbers_of(self.values))
        else:
            order, is_new = _order(self.values)
        places = np.empty(len(order), dtype=_code_type(len(order)))
        places[order] = np.cumsum(is_new) - 1
        values = self.values.to_arrow(compat_level=pl.CompatLevel.oldest()).take(pa.array(order[is_new]))
        return Column(pl.Series(values), places[self.codes])


def numbers_of(values: pl.Series) -> tuple[np.ndarray, np.ndarray | None]:
    """Numbers (V), arbitrary where missing, and (V) which are missing; None: none is.

    Past Polars' query engine, whose price per call is that of thousands of values.
    """
    array = values.to_arrow()
    start = array.offset
    numbers = np.frombuffer(array.buffers()[1], dtype=array.type.to_pandas_dtype())
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    return numbers[start : start + len(array)], missing


def series_of(numbers: np.ndarray, missing: np.ndarray | None) -> pl.Series:
    """The inverse of ``numbers_of``."""
    return pl.Series(pa.array(numbers, mask=missing))


def _order(values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """What sorts values, missing ones first, and which of the sorted ones differ from the one before."""
    order = values.arg_sort()
    ascending = values.gather(order)
    is_new = ascending.ne_missing(ascending.shift(1)).to_numpy().copy()
    is_new[:1] = True
    return order.to_numpy(), is_new


def _order_of_numbers(numbers: np.ndarray, missing: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The same for numbers, which NumPy sorts faster."""
    absent = np.zeros(0, dtype=np.int64) if missing is None else np.flatnonzero(missing)
    if missing is None:
        order = np.argsort(numbers)
    else:
        present = np.flatnonzero(~missing)
        order = np.concatenate([absent, present[np.argsort(numbers[present])]])
    ascending = numbers[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = ascending[1:] != ascending[:-1]
    is_new[1 : len(absent)] = False
    is_new[len(absent) : len(absent) + 1] = True
    return order, is_new


def _code_type(n_values: int) -> type[np.unsignedinteger]:
    if n_values <= 1 << 8:
        return np.uint8
    return np.uint16 if n_values <= 1 << 16 else np.uint32
