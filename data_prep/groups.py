"""Groups of consecutive blocks: what one task counts, and later encodes into whole shards."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.sources.source import Block

MIN_GROUPS = 8
MAX_SHARDS_PER_GROUP = 10


@dataclass(frozen=True, kw_only=True)
class Group:
    """Consecutive blocks, each with the number of its first row within its file."""

    index: int
    blocks: tuple[Block, ...]
    first_rows: tuple[int, ...]

    @property
    def expected_rows(self) -> int:
        """Estimate, for progress."""
        return sum(block.expected_rows for block in self.blocks)


def plan_groups(blocks: list[Block], rows_per_shard: int) -> list[list[int]]:
    """Indices of consecutive blocks that belong together: a function of the input alone.

    A group is large enough to fill shards (of the small splits too, when there are many rows)
    and small enough to leave work for several workers.
    """
    expected = sum(block.expected_rows for block in blocks)
    target = min(max(expected // MIN_GROUPS, rows_per_shard), MAX_SHARDS_PER_GROUP * rows_per_shard)
    groups: list[list[int]] = [[]]
    rows = 0
    for index, block in enumerate(blocks):
        if groups[-1] and rows + block.expected_rows // 2 >= target:
            groups.append([])
            rows = 0
        groups[-1].append(index)
        rows += block.expected_rows
    if len(groups) > 1 and rows < target // 2:
        groups[-2].extend(groups.pop())
    return groups


def shard_sizes(rows: int, rows_per_shard: int) -> list[int]:
    """Sizes, equal within one row, of the fewest shards that hold ``rows``."""
    n_shards = -(-rows // rows_per_shard)
    return [rows * (i + 1) // n_shards - rows * i // n_shards for i in range(n_shards)]
