from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_prep.columns import Column
from data_prep.fields import NumberBuilder
from data_prep.sources.source import RawField
from data_prep.split import SPLITS, TRAIN
from data_prep.spool import open_values, write_part
from data_prep.transforms import FieldRule

X = RawField(name="x", kind="numeric")
LARGEST = float(np.finfo(np.float32).max)


def _standardised(folder: Path, train: list[float | None], test: list[float | None]) -> list[float | None]:
    """What becomes of the numbers in ascending order, the missing one first."""
    splits = np.array([TRAIN] * len(train) + [SPLITS.index("test")] * len(test), dtype=np.uint8)
    column = Column.of(pl.Series([*train, *test], dtype=pl.Float64))
    path = str(folder / "part")
    write_part(path, np.zeros(len(splits), np.uint8), {"x": column}, {"x": "numeric"}, splits)
    builder = NumberBuilder(FieldRule(name="x", column="x", transform="number"))
    with open_values(path, [X]) as values:
        builder.add(values)
        builder.close()
        made: list[float | None] = builder.mapped(values).to_pylist()
    return made


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e30])
def test_numbers_of_every_scale_have_mean_zero_and_deviation_one(tmp_path: Path, scale: float) -> None:
    numbers = np.random.default_rng(0).uniform(0, scale, 2_000)

    made = np.array(_standardised(tmp_path, numbers.tolist(), []), dtype=np.float64)

    assert made.mean() == pytest.approx(0, abs=1e-6)
    assert made.std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("number", [1e200, 1.7e308])
def test_what_no_float32_holds_becomes_the_largest_of_them(tmp_path: Path, number: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = _standardised(tmp_path, [-1.0, 1.0], [number, -number, None])

    assert made == [None, -LARGEST, -1.0, 1.0, LARGEST]


def test_a_number_so_far_off_that_its_distance_from_the_mean_overflows_is_clipped(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = _standardised(tmp_path, [-1.7e308, -1.6e308], [1.7e308])

    assert made == pytest.approx([-1.0, 1.0, LARGEST])
