"""Numbers as a reader sees them."""

from __future__ import annotations

import pytest

from afm_dist.report import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.00114, "+0.0011"), (-0.0007, "−0.0007"), (-0.00004, "0.0000"), (0.0, "0.0000"), (None, "–")],
)
def test_signed(value, shown):
    assert text.signed(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2297.84, "2,298"),
        (405.68, "406"),
        (99.96, "100"),
        (9.996, "10.0"),
        (0.0213, "0.0213"),
        (3e-5, "3e-05"),
    ],
)
def test_significant(value, shown):
    assert text.significant(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.99, "99 %"), (0.99996, "99.996 %"), (1.0, "100 %"), (0.9999999999, "> 99.9999 %")]
)
def test_a_share_says_all_only_when_it_is_all(value, shown):
    assert text.share(value).replace(text.SPACE, " ") == shown


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (2_297_840_000, 405_680_000, "2,298 → 406 MB"),
        (5_960_000, 745_000, "5,960 → 745 kB"),
        (192, 24, "192 → 24 B"),
    ],
)
def test_shrinkage_shows_both_in_one_unit(before, after, shown):
    assert text.shrinkage(before, after).replace(text.SPACE, " ") == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(3.21, "3.2 s"), (402.9, "6 min 43 s"), (5312.4, "1 h 28 min")]
)
def test_duration(seconds, shown):
    assert text.duration(seconds) == shown


def test_power_of_ten():
    assert [text.power_of_ten(value) for value in (1e-12, 1.0, 1000.0)] == ["10⁻¹²", "10⁰", "10³"]
