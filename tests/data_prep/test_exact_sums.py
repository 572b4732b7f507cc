from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.exact_sums import UNIT_BITS, ExactMoments
from data_prep.transforms import signed_log

FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNTED = st.lists(st.tuples(FINITE, st.integers(0, 1 << 33)), max_size=40)


def _sums(counted: list[tuple[float, int]]) -> ExactMoments:
    return ExactMoments.of(
        np.array([value for value, _ in counted], dtype=np.float64),
        np.array([count for _, count in counted], dtype=np.uint64),
    )


@given(COUNTED, st.integers(0, 40))
@example([(2.0**52 + 1, (1 << 33) - 1), (2.0**-60, 1)], 1)
def test_sums_do_not_depend_on_how_the_rows_are_cut_or_ordered(
    counted: list[tuple[float, int]], cut: int
) -> None:
    assert _sums(counted[cut:][::-1]) + _sums(counted[:cut]) == _sums(counted)


@given(st.lists(st.floats(-1e6, 1e6), max_size=40))
def test_a_value_that_occurs_several_times_counts_several_times(values: list[float]) -> None:
    times = Counter(values)

    assert _sums(list(times.items())) == _sums([(value, 1) for value in values])


@given(COUNTED)
@example([(1.7e308, 3), (-5e-324, 1)])
def test_sums_are_those_of_fractions(counted: list[tuple[float, int]]) -> None:
    sums = _sums(counted)

    total = sum((Fraction(value) * count for value, count in counted), Fraction(0))
    squares = sum((Fraction(value) ** 2 * count for value, count in counted), Fraction(0))
    assert sums.count == sum(count for _, count in counted)
    assert Fraction(sums.total, 1 << UNIT_BITS) == total
    assert Fraction(sums.squares, 1 << 2 * UNIT_BITS) == squares
    assert sums.mean() == (float(total / sums.count) if sums.count else 0.0)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e-4, 1e-2, 1.0, 1e9, 1e150])
def test_mean_and_deviation_are_those_of_numpy_at_every_scale(scale: float) -> None:
    values = signed_log(np.random.default_rng(0).lognormal(3, 2, 100_000)) * scale

    sums = ExactMoments.of(values, np.ones(len(values), dtype=np.int64))

    assert sums.mean() == pytest.approx(values.mean(), rel=1e-12, abs=0)
    # Numpy squares, and must not run out of exponents.
    assert sums.deviation() == pytest.approx((values / scale).std() * scale, rel=1e-12, abs=0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40), st.integers(-900, 900))
def test_a_change_of_unit_changes_mean_and_deviation_by_that_unit(values: list[float], power: int) -> None:
    # Multiples of 2^-20, so that powers of two scale them without rounding.
    rounded = [round(value * 2**20) / 2**20 for value in values]
    sums = _sums([(value, 1) for value in rounded])
    scaled = _sums([(value * 2.0**power, 1) for value in rounded])

    assert scaled.mean() == sums.mean() * 2.0**power
    assert scaled.deviation() == (sums.deviation() * 2.0**power if len(set(rounded)) > 1 else 1.0)


@pytest.mark.parametrize(("value", "rows"), [(709.0, 600_000), (2.0**19, 1 << 40)])
def test_squares_do_not_overflow(value: float, rows: int) -> None:
    sums = _sums([(value, rows), (-value, rows)])

    assert sums.mean() == 0.0
    assert sums.squares == 2 * rows * int(value) ** 2 << 2 * UNIT_BITS
    assert sums.deviation() == value


def test_mean_and_deviation_of_the_smallest_numbers_are_right() -> None:
    sums = _sums([(5e-324, 1), (-5e-324, 1)])

    assert sums.mean() == 0.0
    assert sums.deviation() == 5e-324


def test_mean_and_deviation_of_the_largest_numbers_are_finite() -> None:
    sums = _sums([(1.7e308, 1), (-1.7e308, 1)])

    assert sums.mean() == 0.0
    assert sums.deviation() == pytest.approx(1.7e308, rel=1e-12)


@pytest.mark.parametrize("counted", [[], [(2.5, 3)], [(2.5, 1), (7.0, 0)]])
def test_a_constant_or_empty_column_has_deviation_one(counted: list[tuple[float, int]]) -> None:
    assert _sums(counted).deviation() == 1.0
