from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.columns import Column
from data_prep.sources.source import RawField
from data_prep.split import SPLITS
from data_prep.spool import LABEL_COLUMN, open_codes, open_values, write_part

FIELDS = (
    RawField(name="n", kind="numeric"),
    RawField(name="label", kind="categorical"),
    RawField(name="m", kind="numeric"),
    RawField(name="t", kind="categorical"),
)
ROWS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, len(SPLITS) - 1),
        st.none() | st.integers(-3, 3).map(float),
        st.none() | st.text("ab", min_size=1, max_size=2),
        st.just(1.5),
        st.none(),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_a_part_holds_the_rows_of_each_split_in_order_and_counts_the_values_of_training(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]
) -> None:
    path = str(tmp_path_factory.mktemp("spool") / "part")
    labels, splits, *values = zip(*rows, strict=True)
    dtypes = [pl.Float64, pl.String, pl.Float64, pl.String]
    series = [pl.Series(column, dtype=dtype) for column, dtype in zip(values, dtypes, strict=True)]
    columns = {field.name: Column.of(column) for field, column in zip(FIELDS, series, strict=True)}

    part = write_part(
        path,
        np.array(labels, dtype=np.uint8),
        columns,
        {field.name: field.kind for field in FIELDS},
        np.array(splits, dtype=np.uint8),
    )

    of_split = [[row for row in rows if row[1] == split] for split in range(len(SPLITS))]
    assert part.split_rows == [len(each) for each in of_split]
    assert part.positives == [sum(row[0] for row in each) for each in of_split]
    with open_values(path, FIELDS) as held:
        for position, field in enumerate(FIELDS, start=2):
            found = held[field.name]
            distinct, train = {row[position] for row in rows}, Counter(row[position] for row in of_split[0])
            ascending = sorted(distinct, key=lambda value: (value is not None, value))
            assert found.rows() == [(value, train[value]) for value in ascending]
            assert part.distinct[field.name] == len(distinct)
            assert part.missing[field.name] == sum(row[position] is None for row in rows)
            for split, wanted in enumerate(of_split):
                with open_codes(path, split) as batch:
                    codes = batch.column(field.name).to_numpy()
                    assert [ascending[code] for code in codes] == [row[position] for row in wanted]
                    assert batch.column(LABEL_COLUMN).to_pylist() == [row[0] for row in wanted]


def test_a_part_is_three_files_that_appear_whole(tmp_path: Path) -> None:
    columns = {
        field.name: Column.of(pl.Series([1.0 if field.kind == "numeric" else "a"])) for field in FIELDS
    }
    kinds = {field.name: field.kind for field in FIELDS}

    write_part(str(tmp_path / "part"), np.ones(1, np.uint8), columns, kinds, np.zeros(1, np.uint8))

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part-codes.arrow",
        "part-numbers.arrow",
        "part-tokens.arrow",
    ]
