from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data_prep.shards import cut_into_shards, shard_sizes

PART_ROWS = st.lists(st.integers(0, 40), max_size=12)


@given(st.integers(0, 10_000), st.integers(1, 3_000))
def test_shards_hold_every_row_and_differ_by_at_most_one(rows: int, rows_per_shard: int) -> None:
    sizes = shard_sizes(rows, rows_per_shard)

    assert sum(sizes) == rows
    assert all(0 < size <= rows_per_shard for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(st.integers(1, 10_000), st.integers(1, 3_000))
def test_there_are_as_few_shards_as_possible(rows: int, rows_per_shard: int) -> None:
    assert (len(shard_sizes(rows, rows_per_shard)) - 1) * rows_per_shard < rows


@given(PART_ROWS, st.integers(1, 60))
def test_shards_hold_the_same_rows_however_these_lie_in_parts(
    part_rows: list[int], rows_per_shard: int
) -> None:
    rows = [(part, row) for part, count in enumerate(part_rows) for row in range(count)]

    shards = cut_into_shards(part_rows, rows_per_shard)

    held = [[(p.part, row) for p in pieces for row in range(p.start, p.stop)] for pieces in shards]
    assert [row for shard in held for row in shard] == rows
    assert [len(shard) for shard in held] == shard_sizes(len(rows), rows_per_shard)


@given(PART_ROWS, st.integers(1, 60))
def test_no_piece_is_empty(part_rows: list[int], rows_per_shard: int) -> None:
    shards = cut_into_shards(part_rows, rows_per_shard)

    assert all(pieces for pieces in shards)
    assert all(piece.start < piece.stop for pieces in shards for piece in pieces)
