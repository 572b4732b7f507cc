from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from data_prep.split import NOWHERE, SPLITS, ColumnSplit, LastFileSplit, RandomSplit, splitmix64, uniform


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
    rule = RandomSplit(seed=3, validation_share=validation, test_share=test)

    shares = np.bincount(rule(0, np.arange(200_000)), minlength=len(SPLITS)) / 200_000

    assert shares == pytest.approx([1 - validation - test, validation, test], abs=0.005)
    assert (shares[1] == 0) == (validation == 0)


def test_a_row_keeps_its_split_whatever_is_asked_with_it() -> None:
    rule = RandomSplit(seed=3, validation_share=0.2, test_share=0.2)

    together = rule(1, np.arange(1000))

    assert [int(rule(1, np.array([row]))[0]) for row in range(1000)] == together.tolist()


def test_seed_and_file_change_the_split_independently() -> None:
    rows = np.arange(20_000)
    base = RandomSplit(seed=0, validation_share=0.0, test_share=0.5)(0, rows) > 0
    for other in (
        RandomSplit(seed=1, validation_share=0.0, test_share=0.5)(0, rows),
        RandomSplit(seed=0, validation_share=0.0, test_share=0.5)(1, rows),
    ):
        assert abs(np.corrcoef(base, other > 0)[0, 1]) < 0.03


def test_a_larger_validation_share_leaves_the_test_rows_alone() -> None:
    rows = np.arange(10_000)
    small = RandomSplit(seed=0, validation_share=0.1, test_share=0.1)(0, rows)
    large = RandomSplit(seed=0, validation_share=0.4, test_share=0.1)(0, rows)

    assert ((small == 2) == (large == 2)).all()


def test_negative_seeds_work() -> None:
    rule = RandomSplit(seed=-1, validation_share=0.1, test_share=0.1)

    assert set(rule(0, np.arange(1000)).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (0.3, 0.3)])
def test_only_the_last_file_is_held_out(validation: float, test: float) -> None:
    held_out = RandomSplit(seed=7, validation_share=validation, test_share=test)
    rule = LastFileSplit(last_file=2, held_out=held_out)
    rows = np.arange(100_000)

    assert rule.reads == ()
    assert [set(rule(file, rows).tolist()) for file in (0, 1)] == [{0}, {0}]
    shares = np.bincount(rule(2, rows), minlength=len(SPLITS)) / len(rows)
    assert shares == pytest.approx([0, validation, 1 - validation], abs=0.01)
    assert shares[0] == 0


@pytest.mark.parametrize(
    ("values", "validation_from", "test_from", "wanted"),
    [
        ([1.0, 9.0, 10.0, 11.0, 100.0], "10", "100", [0, 0, 1, 1, 2]),
        ([1.0, 9.0, 10.0], None, "9.5", [0, 0, 2]),
        (["14102100", "14102923", "14103000", "14103100"], "14103000", None, [0, 0, 1, 1]),
        (["2014-10-29", "2014-10-30", "2014-10-31"], "2014-10-30", "2014-10-31", [0, 1, 2]),
    ],
)
def test_rows_from_a_value_on_are_held_out(
    values: list[float | str], validation_from: str | None, test_from: str | None, wanted: list[int]
) -> None:
    rule = ColumnSplit(column="when", validation_from=validation_from, test_from=test_from)

    chosen = rule(0, np.arange(len(values)), {"when": pa.array(values)})

    assert rule.reads == ("when",)
    assert chosen.dtype == np.uint8
    assert chosen.tolist() == wanted


@pytest.mark.parametrize(
    ("values", "bounds", "expected"),
    [
        (["1", "2", "9", "10", "30"], ("9", "10"), [0, 0, 1, 2, 2]),
        (["2024-05-31", "2024-06-01 00:10", "2024-07-02"], ("2024-06", "2024-07"), [0, 1, 2]),
        (["-5", "3"], (None, "0"), [0, 2]),
    ],
)
def test_numbers_are_compared_as_numbers_and_dates_as_times(
    values: list[str], bounds: tuple[str | None, str | None], expected: list[int]
) -> None:
    rule = ColumnSplit(column="day", validation_from=bounds[0], test_from=bounds[1])

    got = rule(0, np.arange(len(values)), {"day": pa.array(values)})

    assert got.tolist() == expected


@pytest.mark.parametrize(
    ("values", "start", "faulty"),
    [
        (["7", "x", "", "1.5", "inf", "NA", None], "5", [False, True, True, False, True, True, True]),
        (["2024-06-01", "12", ""], "2024-05-01", [False, True, True]),
        (
            ["2024-6-1", "2024-02-30", "11/04/2024", "2024-06-01T00:00:00.5"],
            "2024-05",
            [False, True, True, False],
        ),
        (["9:30", "24:00", "0930"], "09:00", [False, True, True]),
    ],
)
def test_values_that_do_not_compare_with_the_bounds_are_faults(
    values: list[str | None], start: str, faulty: list[bool]
) -> None:
    rule = ColumnSplit(column="day", validation_from=None, test_from=start)

    chosen = rule(0, np.arange(len(values)), {"day": pa.array(values)})

    assert (chosen == NOWHERE).tolist() == faulty
