from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.columns import Column

VALUES: dict[type[pl.DataType], st.SearchStrategy] = {
    pl.String: st.text(max_size=3),
    pl.UInt32: st.integers(0, 2**32 - 1) | st.integers(0, 3),
    pl.UInt64: st.integers(0, 2**64 - 1) | st.integers(0, 3),
    pl.Float64: st.floats(allow_nan=False) | st.integers(-2, 2).map(float),
}


def _series(draw: st.DataObject, dtype: type[pl.DataType]) -> pl.Series:
    values = st.lists(st.none() | VALUES[dtype], max_size=30)
    return pl.Series(draw.draw(values), dtype=dtype)


@pytest.mark.parametrize("dtype", VALUES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_column_gives_back_its_rows(dtype: type[pl.DataType], data: st.DataObject) -> None:
    rows = _series(data, dtype)
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), dtype=bool)

    column = Column.of(rows)

    assert column.rows().to_list() == rows.to_list()
    assert column.filter(wanted).rows().to_list() == rows.filter(pl.Series(wanted)).to_list()
    assert len(column.values) == len({repr(value) for value in rows})


@pytest.mark.parametrize("dtype", VALUES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_sorting_keeps_the_rows_and_orders_the_values_missing_first(
    dtype: type[pl.DataType], data: st.DataObject
) -> None:
    # Values may repeat: two texts can stand for the same number.
    values = _series(data, dtype)
    places = st.lists(st.integers(0, len(values) - 1), max_size=40) if len(values) else st.just([])
    column = Column(values, np.array(data.draw(places), dtype=np.int32))

    ascending = column.sorted()

    assert ascending.rows().to_list() == column.rows().to_list()
    assert ascending.values.dtype == dtype
    has_missing = values.null_count() > 0
    present = ascending.values.to_list()[has_missing:]
    assert ascending.values.to_list() == [None] * has_missing + present
    assert present == sorted(set(values.drop_nulls()))


@pytest.mark.parametrize("n_values", [1 << 8, (1 << 8) + 1, 1 << 16, (1 << 16) + 1])
def test_codes_are_wide_enough(n_values: int) -> None:
    values = pl.Series(np.arange(n_values, dtype=np.uint32)[::-1])

    ascending = Column(values, np.arange(n_values)).sorted()

    assert ascending.rows().to_list() == values.to_list()
    assert ascending.codes.itemsize == (1 if n_values <= 1 << 8 else 2 if n_values <= 1 << 16 else 4)
