from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data_prep.sources.planted import BLOCK_ROWS, CALIBRATION_ROWS, PART_ROWS, PlantedModel, PlantedRows
from data_prep.sources.planted_shapes import AVAZU, CRITEO, SHAPES, LogShape, ShapeName

BLOCKS = PART_ROWS // BLOCK_ROWS


@pytest.fixture(scope="module", params=SHAPES)
def part(request: pytest.FixtureRequest) -> tuple[LogShape, list[PlantedRows]]:
    """The rows of one file."""
    name: ShapeName = request.param
    model = PlantedModel(SHAPES[name], seed=3)
    return model.shape, [model.block(index) for index in range(BLOCKS)]


def _joined(blocks: list[PlantedRows], name: str) -> np.ndarray:
    return np.concatenate([getattr(block, name) for block in blocks])


def test_the_share_of_clicks_is_the_one_wanted(part: tuple[LogShape, list[PlantedRows]]) -> None:
    shape, blocks = part
    label, probability = _joined(blocks, "label"), _joined(blocks, "probability")
    share = shape.positive_share

    # The intercept was itself found on a sample.
    error = np.sqrt(share * (1 - share) / len(label) + probability.var() / CALIBRATION_ROWS)

    assert abs(label.mean() - share) < 3 * error


def test_the_best_auc_is_the_one_wanted(part: tuple[LogShape, list[PlantedRows]]) -> None:
    shape, blocks = part

    auc = roc_auc_score(_joined(blocks, "label"), _joined(blocks, "probability"))

    assert auc == pytest.approx(shape.bayes_auc, abs=0.004)


def test_values_are_missing_as_often_as_wanted(part: tuple[LogShape, list[PlantedRows]]) -> None:
    shape, blocks = part
    cardinalities = np.array([field.cardinality for field in shape.tokens])
    missing = [*(_joined(blocks, "ids") == cardinalities).T, *_joined(blocks, "integer_missing").T]
    wanted = np.array([field.missing for field in (*shape.tokens, *shape.integers)])

    shares = np.array([column.mean() for column in missing])

    assert np.all(np.abs(shares - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / PART_ROWS))


def test_ids_are_ranks_by_frequency(part: tuple[LogShape, list[PlantedRows]]) -> None:
    shape, blocks = part
    ids = _joined(blocks, "ids")
    for index, field in enumerate(shape.tokens):
        counts = np.bincount(ids[:, index], minlength=field.cardinality + 1)
        assert len(counts) == field.cardinality + 1
        assert np.argmax(counts[:-1]) == 0
        assert counts[: field.cardinality // 2].sum() > counts[field.cardinality // 2 : -1].sum()


def test_every_row_has_a_key_of_its_own(part: tuple[LogShape, list[PlantedRows]]) -> None:
    keys = _joined(part[1], "key")

    assert keys.dtype == np.uint64
    assert len(np.unique(keys)) == PART_ROWS


def test_a_block_is_a_function_of_shape_seed_and_index() -> None:
    first, again = (PlantedModel(AVAZU, 5).block(2) for _ in range(2))
    others = [PlantedModel(AVAZU, 5).block(3), PlantedModel(AVAZU, 6).block(2)]

    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.probability, again.probability)
    for other in others:
        assert (first.ids[:, 9] == other.ids[:, 9]).mean() < 0.5
        assert not np.isin(first.key, other.key).any()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tokens_of_a_field_are_distinct(shape: LogShape) -> None:
    model = PlantedModel(shape, 0)
    for index, field in enumerate(shape.tokens):
        tokens = field.integers or model.token_codes(index)
        assert len(np.unique(tokens)) == field.cardinality


def test_a_file_covers_ten_days_hour_by_hour_and_the_next_one_covers_them_again() -> None:
    model = PlantedModel(AVAZU, 0)
    hours = np.concatenate([model.block(index).hour for index in range(BLOCKS)])

    assert np.all(np.diff(hours) >= 0)
    assert np.unique(hours).tolist() == list(range(240))
    assert np.ptp(np.bincount(hours)) <= 1
    assert np.array_equal(model.block(BLOCKS).hour, model.block(0).hour)


def test_clicks_depend_on_the_hour_of_the_day() -> None:
    model = PlantedModel(AVAZU, 0)
    blocks = [model.block(index) for index in range(BLOCKS)]
    probability, hour = _joined(blocks, "probability"), _joined(blocks, "hour") % 24
    counts = np.bincount(hour)
    means = np.bincount(hour, probability) / counts

    # Without an effect this is chi-square distributed with 23 degrees of freedom.
    spread = (counts * (means - probability.mean()) ** 2).sum() / probability.var()

    assert spread > 200


def test_integers_are_at_least_what_the_shift_allows() -> None:
    rows = PlantedModel(CRITEO, 0).block(0)

    assert rows.integers.min(axis=0).tolist() == [-field.shift for field in CRITEO.integers]
