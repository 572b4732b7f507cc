from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_prep.permutation import Permutation


def _whole(n: int, seed: int) -> np.ndarray:
    return Permutation(n=n, seed=seed)(np.arange(n))


@settings(deadline=None)
@given(n=st.integers(1, 3_000), seed=st.integers())
def test_every_number_goes_to_a_place_of_its_own(n: int, seed: int) -> None:
    assert sorted(_whole(n, seed)) == list(range(n))


@settings(deadline=None)
@given(n=st.integers(1, 2**40), seed=st.integers(), data=st.data())
def test_a_number_goes_where_it_goes_among_others(n: int, seed: int, data: st.DataObject) -> None:
    numbers = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    permutation = Permutation(n=n, seed=seed)

    together = permutation(numbers)

    assert all(0 <= place < n for place in together)
    assert together.tolist() == [permutation(number[None])[0] for number in numbers]


@pytest.mark.parametrize("n", [2, 5, 6, 17])
def test_over_seeds_every_pair_of_places_is_as_likely_as_another(n: int) -> None:
    places = np.array([Permutation(n=n, seed=seed)(np.arange(2)) for seed in range(1_000)])

    counts = np.bincount(places[:, 0] * n + places[:, 1], minlength=n * n).reshape(n, n)

    assert not np.diag(counts).any()
    assert stats.chisquare(counts[~np.eye(n, dtype=bool)]).pvalue > 1e-4
    assert stats.chisquare(counts.sum(1)).pvalue > 1e-4


@pytest.mark.parametrize("seed", [0, 1, -7, 2**70])
def test_of_many_numbers_the_places_say_nothing_of_the_numbers(seed: int) -> None:
    n, pieces = 100_003, 50
    places = _whole(n, seed)

    cells = (np.arange(n) * pieces // n) * pieces + places * pieces // n
    steps = np.diff(places)

    assert stats.chisquare(np.bincount(cells, minlength=pieces**2)).pvalue > 1e-4
    # Neighbours: as many ascents as descents, to within four standard deviations.
    assert abs((steps > 0).sum() - n / 2) < 4 * np.sqrt(n / 12)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 4 / np.sqrt(n)


def test_seeds_give_different_permutations() -> None:
    assert (_whole(1_000, 0) == _whole(1_000, 1)).sum() < 10
