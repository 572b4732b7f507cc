from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from data_prep.columns import Column
from data_prep.encode import Encoding, encode_shard
from data_prep.fields import MAPS_AT_ONCE, NumberBuilder, add_up, write_maps
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.shards import Piece
from data_prep.sources.source import RawField
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from data_prep.split import TRAIN
from data_prep.spool import write_part
from data_prep.transforms import FieldRule
from tests.data_prep.in_this_process import in_this_process

X = RawField(name="x", kind="numeric")


def _spooled(folder: Path, parts: Sequence[np.ndarray]) -> Encoding:
    """Parts with one column of numbers, all in the training split, and the map that standardises them."""
    paths = [str(folder / f"part-{index}") for index in range(len(parts))]
    for path, numbers in zip(paths, parts, strict=True):
        n_rows = len(numbers)
        labels, splits = np.arange(n_rows, dtype=np.uint8) % 2, np.full(n_rows, TRAIN, dtype=np.uint8)
        write_part(path, labels, {"x": Column.of(pl.Series(numbers))}, {"x": "numeric"}, splits)
    rule, maps = FieldRule(name="x", column="x", transform="number"), str(folder / "map.arrow")
    builder = NumberBuilder(rule)
    add_up([builder], paths, [X])
    builder.close()
    write_maps([builder], paths, [X], [maps])
    return Encoding(
        label="y", rules=[rule], parts=paths, small=[], maps=[[maps]], dataset=str(folder / "dataset")
    )


def _encoded(encoding: Encoding, parts: Sequence[np.ndarray]) -> Path:
    pieces = [Piece(part=index, start=0, stop=len(numbers)) for index, numbers in enumerate(parts)]
    shard, _ = encode_shard(encoding, TRAIN, 0, pieces)
    return Path(encoding.dataset) / shard.path


@contextmanager
def _few_files_may_be_open(few: int = 20) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The next file gets the lowest free number, and none may be above the limit.
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + few, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shard_of_more_parts_than_files_may_be_open_holds_their_rows_in_order(tmp_path: Path) -> None:
    parts = [np.array([-1.0, 1.0]) * (-1) ** index for index in range(200)]
    encoding = _spooled(tmp_path, parts)

    with _few_files_may_be_open():
        path = _encoded(encoding, parts)

    assert pq.read_table(path)["x"].to_pylist() == np.concatenate(parts).tolist()
    assert pq.read_table(path)["y"].to_pylist() == [0, 1] * 200


def test_a_table_of_more_columns_than_files_may_be_open_is_prepared(tmp_path: Path) -> None:
    columns = {f"x{index}": np.arange(50) % 7 + index / 2 for index in range(150)}
    pl.DataFrame({"label": [0, 1] * 25, **columns}).write_parquet(tmp_path / "wide.parquet")

    source = TabularSource([str(tmp_path / "wide.parquet")], ColumnOptions(label="label"))
    with in_this_process(), _few_files_may_be_open(MAPS_AT_ONCE + 20):
        manifest = prepare(source, str(tmp_path / "dataset"), Protocol())

    assert [f.name for f in manifest.fields] == list(columns)


@pytest.mark.parametrize(("distinct", "wanted"), [(10, True), (3_000, True), (20_000, False)])
def test_numbers_have_a_dictionary_only_where_few_are_distinct(
    tmp_path: Path, distinct: int, wanted: bool
) -> None:
    numbers = [np.random.default_rng(0).integers(0, distinct, 20_000) / 7]

    path = _encoded(_spooled(tmp_path, numbers), numbers)

    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert column.has_dictionary_page == wanted
    # Never larger than the plain numbers, but for the headers of a column and its pages.
    assert column.total_compressed_size < 4 * 20_000 + 1_000


def test_a_shard_is_the_same_bytes_however_its_rows_were_cut_into_parts(tmp_path: Path) -> None:
    # Parts of an even number of rows, so that the labels alternate in both.
    numbers = np.random.default_rng(0).integers(0, 5_000, 16_000) / 7
    written = []
    for n_parts in (1, 100):
        parts, folder = np.split(numbers, n_parts), tmp_path / str(n_parts)
        folder.mkdir()
        written.append(_encoded(_spooled(folder, parts), parts).read_bytes())

    assert written[0] == written[1]


def test_a_log_of_decimals_and_of_counts_has_dictionaries_for_the_counts_alone(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "label": random.integers(0, 2, 4_000),
            "price": random.uniform(0, 1, 4_000),
            "clicks": random.integers(0, 9, 4_000).astype(float),
            "ad": random.integers(0, 9, 4_000).astype(str),
        }
    )
    table.write_parquet(tmp_path / "clicks.parquet")

    source = TabularSource([str(tmp_path / "clicks.parquet")], ColumnOptions(label="label"))
    with in_this_process():
        manifest = prepare(source, str(tmp_path / "dataset"), Protocol())

    shard = Path(manifest.location) / manifest.splits["train"][0].path
    group = pq.ParquetFile(shard).metadata.row_group(0)
    found = [group.column(i) for i in range(group.num_columns)]
    assert {c.path_in_schema for c in found if c.has_dictionary_page} == {"label", "clicks", "ad"}
