"""Which rows a shard holds: a function of the rows alone, not of how the input was cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows ``start`` to before ``stop`` of one split of a spooled part."""

    part: int
    start: int
    stop: int


def shard_sizes(rows: int, rows_per_shard: int) -> list[int]:
    """Sizes, equal within one row, of the fewest shards that hold ``rows``."""
    n_shards = -(-rows // rows_per_shard)
    return [rows * (i + 1) // n_shards - rows * i // n_shards for i in range(n_shards)]


def cut_into_shards(part_rows: Sequence[int], rows_per_shard: int) -> list[list[Piece]]:
    """The pieces of each shard of one split.

    Args:
        part_rows: Rows of that split in each part, in order.
        rows_per_shard: Largest number of rows of a shard.
    """
    bounds = list(accumulate(shard_sizes(sum(part_rows), rows_per_shard), initial=0))
    shards: list[list[Piece]] = [[] for _ in bounds[1:]]
    first = shard = 0
    for part, rows in enumerate(part_rows):
        while rows and shard < len(shards):
            start, stop = max(first, bounds[shard]), min(first + rows, bounds[shard + 1])
            if start < stop:
                shards[shard].append(Piece(part=part, start=start - first, stop=stop - first))
            if first + rows < bounds[shard + 1]:
                break
            shard += 1
        first += rows
    return shards
