"""Columns of raw values, each distinct value held once.

A click log has many times more rows than a column has distinct values. What is done per distinct
value (parsing, checking, transforming, looking up its id) costs next to nothing; what is left to
do per row is to find equal values once, and later to replace small codes by ids.

Shape legend: B rows, V distinct values.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        encoded = values.to_arrow().dictionary_encode("encode")
        return cls(pl.Series(values.name, encoded.dictionary), encoded.indices.to_numpy())

    def rows(self) -> pl.Series:
        """(B) one value per row."""
        return self.values.gather(self.codes)

    def filter(self, wanted: np.ndarray) -> Column:
        """The rows where ``wanted`` (B) is true; values that no row holds any more may remain."""
        return Column(self.values, self.codes[wanted])

    def sorted(self) -> Column:
        """The same rows, with strictly ascending values (the missing one first) and small codes."""
        order, is_new = (
            _order_of_numbers(self.values) if self.values.dtype.is_numeric() else _order(self.values)
        )
        places = np.empty(len(order), dtype=_code_type(len(order)))
        places[order] = np.cumsum(is_new) - 1
        return Column(self.values.gather(order[is_new]), places[self.codes])


def _order(values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """What sorts values, missing ones first, and which of the sorted ones differ from the one before."""
    order = values.arg_sort()
    ascending = values.gather(order)
    is_new = ascending.ne_missing(ascending.shift(1)).to_numpy().copy()
    is_new[:1] = True
    return order.to_numpy(), is_new


def _order_of_numbers(values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The same for numbers, which NumPy sorts faster."""
    missing = values.is_null().to_numpy() if values.null_count() else np.zeros(len(values), dtype=bool)
    numbers = values.fill_null(0).to_numpy()
    present = np.flatnonzero(~missing)
    present = present[np.argsort(numbers[present])]
    order = np.concatenate([np.flatnonzero(missing), present])
    ascending = numbers[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = ascending[1:] != ascending[:-1]
    n_missing = len(order) - len(present)
    is_new[1:n_missing] = False
    is_new[n_missing : n_missing + 1] = True
    return order, is_new


def _code_type(n_values: int) -> type[np.unsignedinteger]:
    if n_values <= 1 << 8:
        return np.uint8
    return np.uint16 if n_values <= 1 << 16 else np.uint32


def to_frame(columns: Mapping[str, Column]) -> pl.DataFrame:
    """Columns of equal length with one value per row."""
    return pl.DataFrame({name: column.rows().rename(name) for name, column in columns.items()})


def codes_table(columns: Mapping[str, Column]) -> pa.Table:
    """The codes of columns of equal length."""
    return pa.table({name: pa.array(column.codes) for name, column in columns.items()})
