from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.numeric import ExactSums, transform

VALUES = st.lists(st.floats(-1e300, 1e300, allow_nan=False), max_size=40)


@given(st.floats(-1e300, 1e300))
def test_transform_is_odd_logarithmic_and_bounded(value: float) -> None:
    got = transform(np.array([value, -value]))

    assert got[0] == -got[1]
    assert got[0] == pytest.approx(math.copysign(math.log1p(abs(value)), value), rel=1e-14)
    assert abs(got[0]) < 710


@given(VALUES, st.integers(0, 40))
def test_sums_do_not_depend_on_how_the_rows_are_cut_or_ordered(values: list[float], cut: int) -> None:
    transformed = transform(np.array(values))

    parts = ExactSums.of(transformed[cut:][::-1]) + ExactSums.of(transformed[:cut])

    assert parts == ExactSums.of(transformed)


def test_mean_and_deviation_are_those_of_numpy_within_the_resolution() -> None:
    transformed = transform(np.random.default_rng(0).lognormal(3, 2, 500_000))

    sums = ExactSums.of(transformed)

    assert sums.mean() == pytest.approx(transformed.mean(), abs=2**-13)
    assert sums.deviation() == pytest.approx(transformed.std(), abs=2**-13)


def test_squares_do_not_overflow() -> None:
    extreme = np.full(600_000, 709.0)

    sums = ExactSums.of(extreme)

    assert sums.mean() == 709.0
    assert sums.squares == 600_000 * (709 * 4096) ** 2


@pytest.mark.parametrize("values", [[], [2.5, 2.5, 2.5]])
def test_a_constant_or_empty_column_has_deviation_one(values: list[float]) -> None:
    assert ExactSums.of(np.array(values)).deviation() == 1.0
