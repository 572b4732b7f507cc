from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.exact_sums import FEW_ROWS, RESOLUTION, SMALL_VALUE, ExactSums
from data_prep.transforms import signed_log

FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNTED = st.lists(st.tuples(FINITE, st.integers(0, 1 << 33)), max_size=40)


def _sums(counted: list[tuple[float, int]]) -> ExactSums:
    return ExactSums.of(
        np.array([value for value, _ in counted], dtype=np.float64),
        np.array([count for _, count in counted], dtype=np.uint64),
    )


@given(COUNTED, st.integers(0, 40))
@example([(float(SMALL_VALUE), FEW_ROWS - 1), (1.0, 1)], 1)
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
def test_sums_are_those_of_fractions_within_the_resolution(counted: list[tuple[float, int]]) -> None:
    sums = _sums(counted)

    half = Fraction(1, 2 * RESOLUTION)
    exact = sum((Fraction(value) * count for value, count in counted), Fraction(0))
    assert sums.count == sum(count for _, count in counted)
    assert abs(Fraction(sums.total, RESOLUTION) - exact) <= half * sums.count


def test_mean_and_deviation_are_those_of_numpy_within_the_resolution() -> None:
    values = signed_log(np.random.default_rng(0).lognormal(3, 2, 500_000))

    sums = ExactSums.of(values, np.ones(len(values), dtype=np.int64))

    assert sums.mean() == pytest.approx(values.mean(), abs=2**-13)
    assert sums.deviation() == pytest.approx(values.std(), abs=2**-13)


@pytest.mark.parametrize(("value", "rows"), [(709.0, 600_000), (float(SMALL_VALUE), 1 << 40)])
def test_squares_do_not_overflow(value: float, rows: int) -> None:
    sums = _sums([(value, rows), (-value, rows)])

    assert sums.mean() == 0.0
    assert sums.squares == 2 * rows * int(value * RESOLUTION) ** 2
    assert sums.deviation() == value


def test_mean_and_deviation_of_the_largest_numbers_are_finite() -> None:
    sums = _sums([(1.7e308, 1), (-1.7e308, 1)])

    assert sums.mean() == 0.0
    assert sums.deviation() == pytest.approx(1.7e308, rel=1e-12)


@pytest.mark.parametrize("counted", [[], [(2.5, 3)], [(2.5, 1), (7.0, 0)]])
def test_a_constant_or_empty_column_has_deviation_one(counted: list[tuple[float, int]]) -> None:
    assert _sums(counted).deviation() == 1.0
