from __future__ import annotations

import numpy as np
import pytest

from data_prep.split import SPLITS, SplitRule, splitmix64, uniform


def test_splitmix64_agrees_with_the_published_sequence() -> None:
    # The generator's first outputs for seed 0: state k·golden, finalised.
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.arange(3, dtype=np.uint64) * golden

    assert [hex(value) for value in splitmix64(states).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_uniform_numbers_of_consecutive_integers_are_even_and_below_one() -> None:
    draws = uniform(splitmix64(np.arange(100_000)))

    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    assert draws.max() < 1
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(10_000 * 0.9)


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.0, 0.1), (0.3, 0.0), (0.0, 0.0)])
def test_shares_are_those_asked_for(validation: float, test: float) -> None:
    rule = SplitRule(seed=3, validation_share=validation, test_share=test)

    shares = np.bincount(rule(0, np.arange(200_000)), minlength=len(SPLITS)) / 200_000

    assert shares == pytest.approx([1 - validation - test, validation, test], abs=0.005)
    assert (shares[1] == 0) == (validation == 0)


def test_a_row_keeps_its_split_whatever_is_asked_with_it() -> None:
    rule = SplitRule(seed=3, validation_share=0.2, test_share=0.2)

    together = rule(1, np.arange(1000))

    assert [int(rule(1, np.array([row]))[0]) for row in range(1000)] == together.tolist()


def test_seed_and_file_change_the_split_independently() -> None:
    rows = np.arange(20_000)
    base = SplitRule(seed=0, validation_share=0.0, test_share=0.5)(0, rows) > 0
    for other in (
        SplitRule(seed=1, validation_share=0.0, test_share=0.5)(0, rows),
        SplitRule(seed=0, validation_share=0.0, test_share=0.5)(1, rows),
    ):
        assert abs(np.corrcoef(base, other > 0)[0, 1]) < 0.03


def test_a_larger_validation_share_leaves_the_test_rows_alone() -> None:
    rows = np.arange(10_000)
    small = SplitRule(seed=0, validation_share=0.1, test_share=0.1)(0, rows)
    large = SplitRule(seed=0, validation_share=0.4, test_share=0.1)(0, rows)

    assert ((small == 2) == (large == 2)).all()


def test_negative_seeds_work() -> None:
    rule = SplitRule(seed=-1, validation_share=0.1, test_share=0.1)

    assert set(rule(0, np.arange(1000)).tolist()) == {0, 1, 2}
