"""Which rows of a fused table a task takes: a function of the table only, never of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afm_dist.statistics.moments import RANGE_ROWS


@dataclass(frozen=True, kw_only=True)
class RowRange:
    """Some neighbouring rows of one field.

    Attributes:
        field: Its number.
        offset: Where its rows begin in the fused table.
        start: First id.
        stop: Behind the last id.
    """

    field: int
    offset: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


Group = tuple[RowRange, ...]


def row_groups(cardinalities: Sequence[int], range_rows: int = RANGE_ROWS) -> list[Group]:
    """Ranges for each task: neighbours in the table, ``range_rows`` rows at most.

    A range begins at a multiple of ``range_rows`` of its field's ids, as ``moments_of_table`` sums them;
    so a group has no two ranges of one field.

    Args:
        cardinalities: Rows of each field.
        range_rows: Most rows of a group.
    """
    groups: list[list[RowRange]] = []
    offset, room = 0, 0
    for field, cardinality in enumerate(cardinalities):
        for start in range(0, cardinality, range_rows):
            rows = RowRange(
                field=field, offset=offset, start=start, stop=min(cardinality, start + range_rows)
            )
            if len(rows) > room:
                groups.append([])
                room = range_rows
            groups[-1].append(rows)
            room -= len(rows)
        offset += cardinality
    return [tuple(group) for group in groups]


def rows_of(group: Group) -> int:
    """Return how many rows a group has."""
    return sum(len(rows) for rows in group)
