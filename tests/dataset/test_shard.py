from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afm_dist import storage
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_shard
from afm_dist.dataset.shard import OpenShard, write_numbers
from afm_dist.errors import DataError
from tests.small_dataset import ROW_GROUP_ROWS, write_shard


def replaced(dataset: Manifest, **columns: Any) -> Manifest:
    """The dataset with a first training shard of other columns, its checksum in order."""
    first = dataset.shards("train")[0]
    table = pq.read_table(Path(dataset.location, first.path))
    for name, values in columns.items():
        table = (
            table.drop_columns([name])
            if values is None
            else table.set_column(table.column_names.index(name), name, values)
        )
    shard = write_shard(
        dataset.location,
        first.path,
        {name: table.column(name).combine_chunks() for name in table.column_names},
    )
    return replace(dataset, splits={**dataset.splits, "train": (shard, *dataset.shards("train")[1:])})


def read_first(dataset: Manifest) -> Batch:
    return read_shard(dataset, dataset.shards("train")[0])


def test_a_shard_comes_back_as_it_was_written(dataset: Manifest) -> None:
    shard = dataset.shards("train")[0]
    table = pq.read_table(Path(dataset.location, shard.path))

    batch = read_first(dataset)

    assert len(batch) == shard.rows
    assert (batch.ids.dtype, batch.numeric.dtype, batch.labels.dtype) == (
        torch.int32,
        torch.float32,
        torch.float32,
    )
    np.testing.assert_array_equal(batch.ids[:, 0], table["site"])
    np.testing.assert_array_equal(batch.ids[:, 1], table["ad"])
    np.testing.assert_array_equal(batch.labels, table["click"])


def test_a_missing_number_is_the_mean(dataset: Manifest) -> None:
    column = pq.read_table(Path(dataset.location, dataset.shards("train")[0].path))["age"]
    assert column.null_count > 0

    numeric = read_first(dataset).numeric[:, 0].numpy()

    missing = column.is_null().to_numpy()
    np.testing.assert_array_equal(numeric[missing], 0.0)
    np.testing.assert_array_equal(numeric[~missing], column.drop_null())


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "altered"])
def test_a_damaged_shard_is_refused_by_name(dataset: Manifest, damage: str) -> None:
    path = Path(dataset.location, dataset.shards("train")[0].path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "longer":
        path.write_bytes(content + b"\0")
    else:
        position = len(content) // 2
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])

    with pytest.raises(DataError, match=r"train/part-00000\.parquet"):
        read_first(dataset)


@pytest.mark.parametrize("bad", [-1, 7, 2**31 - 1])
def test_an_id_outside_its_table_names_field_shard_and_id(dataset: Manifest, bad: int) -> None:
    ids = read_first(dataset).ids[:, 1].numpy().copy()
    ids[5] = bad
    broken = replaced(dataset, ad=pa.array(ids))

    with pytest.raises(DataError, match=rf"part-00000\.parquet: field 'ad' holds id {bad} outside .* 7 rows"):
        read_first(broken)


def test_a_missing_id_names_field_and_shard(dataset: Manifest) -> None:
    ids = read_first(dataset).ids[:, 1].numpy()
    mask = np.zeros(len(ids), bool)
    mask[3] = True
    broken = replaced(dataset, ad=pa.array(ids, mask=mask))

    with pytest.raises(DataError, match=r"part-00000\.parquet: field 'ad' .*missing"):
        read_first(broken)


@pytest.mark.parametrize(
    ("column", "found", "promised"),
    # Ids stored as float32 corrupt above 2**24.
    [
        ("ad", "float", "int32"),
        ("ad", "int64", "int32"),
        ("age", "double", "float"),
        ("click", "int8", "uint8"),
    ],
)
def test_a_column_of_another_type_names_it_shard_and_types(
    dataset: Manifest, column: str, found: str, promised: str
) -> None:
    first = dataset.shards("train")[0]
    values = pq.read_table(Path(dataset.location, first.path))[column].combine_chunks()
    broken = replaced(dataset, **{column: values.cast(found)})

    with pytest.raises(
        DataError, match=rf"part-00000\.parquet: column '{column}' holds {found} instead of {promised}"
    ):
        read_first(broken)


@pytest.mark.parametrize("rows", [399, 401])
def test_a_shard_of_another_number_of_rows_is_refused_by_name(dataset: Manifest, rows: int) -> None:
    shard = replace(dataset.shards("train")[0], rows=rows)

    with pytest.raises(DataError, match=rf"part-00000\.parquet: 400 rows .* promises {rows}"):
        read_shard(dataset, shard)


@pytest.mark.parametrize("bad", [2, None])
def test_a_label_other_than_0_and_1_names_the_shard(dataset: Manifest, bad: int | None) -> None:
    labels = [int(label) for label in read_first(dataset).labels]
    broken = replaced(dataset, click=pa.array([*labels[:-1], bad], pa.uint8()))

    with pytest.raises(DataError, match=r"part-00000\.parquet: labels other than 0 and 1"):
        read_first(broken)


def test_a_shard_without_a_column_names_both(dataset: Manifest) -> None:
    broken = replaced(dataset, ad=None)

    with pytest.raises(DataError, match=r"part-00000\.parquet: .*ad") as error:
        read_first(broken)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_parquet_is_refused_by_name(dataset: Manifest) -> None:
    first = dataset.shards("train")[0]
    content = b"label,site\n1,2\n"
    Path(dataset.location, first.path).write_bytes(content)
    shard = replace(first, bytes=len(content), sha256=storage.sha256(content))

    with pytest.raises(DataError, match=r"part-00000\.parquet: not a shard"):
        read_shard(dataset, shard)


def test_row_groups_put_together_are_the_shard(dataset: Manifest) -> None:
    opened = OpenShard(dataset, dataset.shards("train")[0])

    groups = [opened.read_group(i) for i in range(len(opened.group_rows))]

    assert opened.group_rows == [ROW_GROUP_ROWS] * 4 + [400 - 4 * ROW_GROUP_ROWS]
    assert [len(group) for group in groups] == opened.group_rows
    whole, parts = read_first(dataset), Batch.concatenate([group[:] for group in groups])
    assert torch.equal(parts.ids, whole.ids)
    assert torch.equal(parts.numeric, whole.numeric)
    assert torch.equal(parts.labels, whole.labels)


def test_rows_between_two_are_those_of_a_slice(dataset: Manifest) -> None:
    group = OpenShard(dataset, dataset.shards("train")[0]).read_group(1)
    room = Batch.room(dataset, 30)

    group.between(20, 50).write(room)

    for written, sliced in zip(vars(room).values(), vars(group[20:50]).values(), strict=True):
        assert torch.equal(written, sliced)
        assert sliced.is_contiguous()


@given(
    parts=st.lists(
        st.tuples(st.lists(st.none() | st.floats(width=32, allow_nan=False), max_size=30), st.integers(0, 9)),
        max_size=4,
    )
)
def test_missing_numbers_are_zero_whatever_lies_beneath(
    parts: list[tuple[list[float | None], int]],
) -> None:
    chunks = []
    for values, skipped in parts:
        padded = [np.nan] * skipped + [np.nan if value is None else value for value in values]
        missing = [True] * skipped + [value is None for value in values]
        array = pa.Array.from_buffers(
            pa.float32(),
            len(padded),
            [
                pa.py_buffer(np.packbits(~np.array(missing, dtype=bool), bitorder="little")),
                pa.py_buffer(np.array(padded, dtype=np.float32)),
            ],
        )
        chunks.append(array.slice(skipped))
    column = pa.chunked_array(chunks, pa.float32())
    written = np.full(len(column), np.nan, dtype=np.float32)

    write_numbers(column, written)

    expected = [0.0 if value is None else value for values, _ in parts for value in values]
    np.testing.assert_array_equal(written, np.array(expected, dtype=np.float32))
