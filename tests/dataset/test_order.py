from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.dataset.order import TrainingOrder
from afm_dist.dataset.shard import Columns, OpenShard
from tests.small_dataset import write_shard


def write_numbered(location: str, sizes: tuple[int, ...], row_group_rows: int) -> Manifest:
    """A training split whose rows are told apart by their only id: 0, 1, 2, …"""
    shards, first = [], 0
    for i, rows in enumerate(sizes):
        ids = np.arange(first, first + rows, dtype=np.int32)
        columns = {
            "click": pa.array((ids % 2).astype(np.uint8)),
            "row": pa.array(ids),
            "number": pa.array(-ids.astype(np.float32)),
        }
        path = f"train/part-{i:05d}.parquet"
        shards.append(write_shard(location, path, columns, row_group_rows=row_group_rows))
        first += rows
    fields = (Field(name="row", kind="categorical", cardinality=first), Field(name="number", kind="numeric"))
    return Manifest(location=location, label="click", fields=fields, splits={"train": tuple(shards)})


@contextmanager
def numbered(sizes: tuple[int, ...], row_group_rows: int) -> Iterator[Manifest]:
    with tempfile.TemporaryDirectory() as location:
        yield write_numbered(location, sizes, row_group_rows)


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.ids[:, 0]]


def order(log: Manifest, **changes: Any) -> TrainingOrder:
    return TrainingOrder(**{"manifest": log, "batch_size": 64, "seed": 0, **changes})


@contextmanager
def decoded_rows() -> Iterator[list[int]]:
    """Rows of each row group that is decoded meanwhile."""
    rows: list[int] = []
    read_group = OpenShard.read_group

    def watched(self: OpenShard, index: int) -> Columns:
        rows.append(self.group_rows[index])
        return read_group(self, index)

    with mock.patch.object(OpenShard, "read_group", watched):
        yield rows


LOGS = {
    "sizes": st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
    "row_group_rows": st.integers(1, 50),
}
ORDERS = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 60) | st.just(1000),
        "seed": st.integers(0, 3),
        "shuffle": st.booleans(),
        "window": st.integers(1, 60) | st.just(200_000),
    }
)


# Every row exactly once --------------------------------------------------------------------------


@settings(deadline=None)
@given(**LOGS, options=ORDERS, world_size=st.integers(1, 7), epoch=st.integers(0, 2))
def test_the_ranks_together_see_every_row_exactly_once_in_equal_steps(
    sizes: tuple[int, ...], row_group_rows: int, options: dict[str, Any], world_size: int, epoch: int
) -> None:
    n, batch_size = sum(sizes), options["batch_size"]
    with numbered(sizes, row_group_rows) as log:
        orders = [order(log, **options, rank=rank, world_size=world_size) for rank in range(world_size)]

        batches = [list(own.batches(epoch)) for own in orders]

    assert sorted(row for own in batches for row in rows_of(own)) == list(range(n))
    assert {own.steps for own in orders} == {len(own) for own in batches} == {-(-n // batch_size)}
    for step, parts in enumerate(zip(*batches, strict=True)):
        lengths = [len(part) for part in parts]
        assert sum(lengths) == min(batch_size, n - step * batch_size)
        assert max(lengths) - min(lengths) <= 1


@given(**LOGS, options=ORDERS)
@settings(deadline=None, max_examples=30)
def test_the_columns_of_a_row_stay_together(
    sizes: tuple[int, ...], row_group_rows: int, options: dict[str, Any]
) -> None:
    with numbered(sizes, row_group_rows) as log:
        for batch in order(log, **options).batches(0):
            assert torch.equal(batch.numeric[:, 0], -batch.ids[:, 0].float())
            assert torch.equal(batch.labels, batch.ids[:, 0].float() % 2)


@settings(deadline=None)
@given(**LOGS, options=ORDERS, world_size=st.integers(1, 5))
def test_each_rank_decodes_its_own_row_groups_and_those_at_the_edges(
    sizes: tuple[int, ...], row_group_rows: int, options: dict[str, Any], world_size: int
) -> None:
    with numbered(sizes, row_group_rows) as log:
        for rank in range(world_size):
            with decoded_rows() as decoded:
                own = rows_of(list(order(log, **options, rank=rank, world_size=world_size).batches(0)))
            assert sum(decoded) <= len(own) + 2 * (min(row_group_rows, max(sizes)) - 1)


# Resumption --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(**LOGS, options=ORDERS, world_size=st.integers(1, 4), data=st.data())
def test_resuming_at_any_step_gives_the_batches_that_were_left(
    sizes: tuple[int, ...], row_group_rows: int, options: dict[str, Any], world_size: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, world_size - 1))
    with numbered(sizes, row_group_rows) as log:
        own = order(log, **options, rank=rank, world_size=world_size)
        first_step = data.draw(st.integers(0, own.steps))

        resumed = list(own.batches(1, first_step))

        left = list(own.batches(1))[first_step:]
    assert len(resumed) == len(left)
    for mine, whole in zip(resumed, left, strict=True):
        assert torch.equal(mine.ids, whole.ids)
        assert torch.equal(mine.numeric, whole.numeric)
        assert torch.equal(mine.labels, whole.labels)


@settings(deadline=None)
@given(**LOGS, options=ORDERS, data=st.data())
def test_resuming_decodes_nothing_before_the_window_it_stands_in(
    sizes: tuple[int, ...], row_group_rows: int, options: dict[str, Any], data: st.DataObject
) -> None:
    n, largest = sum(sizes), min(row_group_rows, max(sizes))
    with numbered(sizes, row_group_rows) as log:
        own = order(log, **options)
        first_step = data.draw(st.integers(0, own.steps))
        with decoded_rows() as decoded:
            list(own.batches(0, first_step))

    consumed = min(first_step * options["batch_size"], n)
    if options["shuffle"]:
        consumed -= consumed % options["window"]
    assert sum(decoded) <= n - consumed + largest - 1


@settings(deadline=None)
@given(**LOGS, options=ORDERS)
def test_a_batch_asks_for_no_more_than_its_window(
    sizes: tuple[int, ...], row_group_rows: int, options: dict[str, Any]
) -> None:
    with numbered(sizes, row_group_rows) as log, decoded_rows() as decoded:
        own = order(log, **options)
        next(own.batches(0))

    needed = min(options["batch_size"], sum(sizes))
    if options["shuffle"]:
        needed = -(-needed // options["window"]) * options["window"]
    assert sum(decoded) <= needed + min(row_group_rows, max(sizes)) - 1


# The shuffle -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Six shards of ten row groups of twenty rows."""
    return write_numbered(str(tmp_path_factory.mktemp("log")), (200,) * 6, 20)


def epoch_rows(log: Manifest, epoch: int = 0, **changes: Any) -> list[int]:
    return rows_of(list(order(log, **changes).batches(epoch)))


@pytest.mark.parametrize("world_size", [1, 3])
def test_without_shuffling_the_ranks_stretches_are_the_manifest_s_order(
    log: Manifest, world_size: int
) -> None:
    stretches = [
        epoch_rows(log, shuffle=False, rank=rank, world_size=world_size) for rank in range(world_size)
    ]

    assert [row for stretch in stretches for row in stretch] == list(range(1200))


def test_a_window_holds_consecutive_row_groups_of_shards_and_mixes_them(log: Manifest) -> None:
    rows = np.array(epoch_rows(log, window=100))

    for window in rows.reshape(12, 100):
        shards, groups = window // 200, window // 20
        assert len(set(shards)) == 1
        assert len(set(groups)) == 5
        # All five within any twenty rows in a row: they are permuted together, not one by one.
        assert all(len(set(groups[i : i + 20])) > 1 for i in range(0, 100, 20))


@pytest.mark.parametrize(
    ("level", "rows"), [("shards", 200), ("row groups", 20)], ids=["shards", "row groups"]
)
def test_shards_and_row_groups_are_permuted_anew_by_epoch_and_seed(
    log: Manifest, level: str, rows: int
) -> None:
    def sequence(epoch: int, seed: int) -> tuple[int, ...]:
        pieces = np.array(epoch_rows(log, epoch, seed=seed, window=1)) // rows
        changes = [int(b) for a, b in pairwise([-1, *pieces]) if a != b]
        if level == "shards":
            return tuple(changes)
        # Of one shard, so that the order of the shards does not matter.
        return tuple(group for group in changes if group // 10 == 0)

    sequences = {sequence(epoch, seed) for epoch in (0, 1) for seed in (0, 1)}

    assert len(sequences) == 4
    assert all(sorted(each) == list(range(len(each))) for each in sequences)


def test_rows_are_permuted_anew_by_epoch_seed_and_window(tmp_path: Any) -> None:
    log = write_numbered(str(tmp_path), (300,), 300)

    windows = {
        tuple(np.array(window) - min(window))
        for epoch in (0, 1)
        for seed in (0, 1)
        for window in np.array(epoch_rows(log, epoch, seed=seed, window=100)).reshape(3, 100)
    }

    assert len(windows) == 12


def test_an_epoch_repeats(log: Manifest) -> None:
    assert epoch_rows(log, 1, seed=1) == epoch_rows(log, 1, seed=1)


@pytest.mark.parametrize("batch_size", [1, 64, 1200, 5000])
def test_batches_of_any_size_are_cut_from_the_same_order(log: Manifest, batch_size: int) -> None:
    assert epoch_rows(log, batch_size=batch_size) == epoch_rows(log)
