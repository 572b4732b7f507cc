from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.large_tables.ranges import row_groups, rows_of


@settings(max_examples=40, deadline=None)
@given(cardinalities=st.lists(st.integers(1, 50), min_size=1, max_size=8), range_rows=st.integers(1, 20))
def test_groups_hold_every_row_once_in_order(cardinalities: list[int], range_rows: int) -> None:
    groups = row_groups(cardinalities, range_rows)

    rows = [rows.offset + i for group in groups for rows in group for i in range(rows.start, rows.stop)]
    assert rows == list(range(sum(cardinalities)))
    for group in groups:
        assert 1 <= rows_of(group) <= range_rows
        assert len({rows.field for rows in group}) == len(group)
        assert all(rows.start % range_rows == 0 for rows in group)
    # As few as can be without looking ahead: two neighbours never fit together.
    assert all(rows_of(a) + len(b[0]) > range_rows for a, b in pairwise(groups))
