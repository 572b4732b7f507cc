from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data_prep.groups import plan_groups, shard_sizes
from data_prep.sources.source import Block


def _blocks(sizes: list[int]) -> list[Block]:
    return [Block(file=0, start=i, end=i + 1, expected_rows=rows) for i, rows in enumerate(sizes)]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 1000))
def test_groups_are_consecutive_and_complete(sizes: list[int], rows_per_shard: int) -> None:
    groups = plan_groups(_blocks(sizes), rows_per_shard)

    assert [index for group in groups for index in group] == list(range(len(sizes)))
    assert all(groups)


def test_few_rows_make_one_group() -> None:
    assert plan_groups(_blocks([10_000] * 9), 100_000) == [list(range(9))]


def test_many_rows_make_groups_that_fill_shards() -> None:
    groups = plan_groups(_blocks([100_000] * 400), 100_000)

    assert {len(group) for group in groups} == {10}


@given(st.integers(0, 10_000), st.integers(1, 3_000))
def test_shards_hold_every_row_and_differ_by_at_most_one(rows: int, rows_per_shard: int) -> None:
    sizes = shard_sizes(rows, rows_per_shard)

    assert sum(sizes) == rows
    assert all(0 < size <= rows_per_shard for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1
