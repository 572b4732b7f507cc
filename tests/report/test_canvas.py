"""Labels that keep out of each other's way."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from afm_dist.report.plots.canvas import short, spread_out

POSITIONS = st.lists(st.floats(0, 100), min_size=1, max_size=12)


@given(POSITIONS)
def test_labels_keep_their_distance_and_their_order(positions):
    placed = spread_out(positions, 5, 0, 100)

    ranked = [place for _, place in sorted(zip(positions, placed, strict=True))]
    assert all(second - first >= 5 - 1e-9 for first, second in pairwise(ranked))
    assert min(placed) >= -1e-9 and max(placed) <= 100 + 1e-9


@given(POSITIONS)
def test_labels_that_do_not_collide_stay(positions):
    apart = [10.0 * round(position / 10) for position in dict.fromkeys(round(p / 10) * 10 for p in positions)]

    assert spread_out(apart, 5, 0, 100) == apart


def test_short_labels_keep_both_ends():
    assert short("embedding_of_a_very_long_field_name", 14) == "embeddi…d_name"
    assert short("two\nlines") == "two lines"
