from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.evaluation import scored_rows
from afm_dist.evaluation.calibration import Calibration, calibration
from afm_dist.evaluation.metrics import auc, log_loss
from afm_dist.evaluation.scored_rows import ScoredRows
from tests.evaluation.examples import Example, examples


def figures(rows: ScoredRows) -> tuple[float, float, Calibration]:
    return auc(rows), log_loss(rows), calibration(rows)


def content(rows: ScoredRows) -> list[bytes]:
    sides = (rows.positives, rows.negatives)
    return [each.tobytes() for side in sides for each in (side.values, side.weights) if each is not None]


@settings(deadline=None)
@given(examples(), st.integers(1, 6), st.randoms(use_true_random=False))
def test_neither_order_nor_partition_of_rows_changes_a_bit(example: Example, parts: int, random: Any) -> None:
    owner = np.array([random.randrange(parts) for _ in example.labels])
    order = random.sample(range(parts), parts)

    def part(i: int) -> ScoredRows:
        rows = np.flatnonzero(owner == i)
        random.shuffle(rows)
        weights = None if example.weights is None else example.weights[rows]
        return ScoredRows.of(example.labels[rows], example.logits[rows], weights)

    merged = ScoredRows.merged(part(i) for i in order)

    assert content(merged) == content(example.rows)
    assert figures(merged) == figures(example.rows)


@settings(deadline=None)
@given(examples(weighted=False))
def test_weights_of_one_change_nothing(example: Example) -> None:
    ones = ScoredRows.of(example.labels, example.logits, np.ones(len(example.labels)))
    assert figures(ones) == figures(example.rows)


@settings(deadline=None)
@given(examples(weighted=False), st.randoms(use_true_random=False))
def test_a_whole_weight_is_as_many_equal_rows(example: Example, random: Any) -> None:
    times = np.array([1, 1, *(random.randrange(4) for _ in example.labels[2:])])
    weighted = ScoredRows.of(example.labels, example.logits, times)
    repeated = ScoredRows.of(np.repeat(example.labels, times), np.repeat(example.logits, times))

    assert len(weighted) == np.count_nonzero(times)
    assert weighted.weight == repeated.weight == len(repeated) == times.sum()
    assert auc(weighted) == auc(repeated)
    assert log_loss(weighted) == pytest.approx(log_loss(repeated), rel=1e-13)
    assert [(each.weight, each.observed) for each in calibration(weighted).bins] == [
        (each.weight, each.observed) for each in calibration(repeated).bins
    ]


@settings(deadline=None)
@given(examples(weighted=True))
def test_only_the_ratios_of_weights_count(example: Example) -> None:
    halved = ScoredRows.of(example.labels, example.logits, example.weights / 2)
    assert (auc(halved), log_loss(halved)) == (auc(example.rows), log_loss(example.rows))


def test_rows_without_weights_count_once_beside_rows_with_weights() -> None:
    merged = ScoredRows.merged([ScoredRows.of([0, 1], [1, 2]), ScoredRows.of([0, 1], [2, 3], [0.5, 4])])
    assert (merged.positives.weight, merged.negatives.weight) == (5, 1.5)
    assert auc(merged) == (1 * (1 + 0.5 / 2) + 4 * 1.5) / (5 * 1.5)


def test_nothing_merges_to_no_rows() -> None:
    assert len(ScoredRows.merged([])) == 0


def test_sums_over_blocks_are_those_over_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    labels, logits = generator.integers(0, 2, 1000), generator.normal(size=1000)
    for weights in (None, generator.exponential(size=1000)):
        rows = ScoredRows.of(labels, logits, weights)
        whole = figures(rows)
        with monkeypatch.context() as patch:
            patch.setattr(scored_rows, "BLOCK_ROWS", 7)
            area, loss, table = figures(rows)
        assert (area, loss) == pytest.approx(whole[:2], rel=1e-14)
        assert table.ratio == pytest.approx(whole[2].ratio, rel=1e-14)


def test_float32_scores_take_four_bytes_a_row() -> None:
    rows = ScoredRows.of(np.arange(100) % 2, np.arange(100, dtype=np.float32))
    assert sum(map(len, content(rows))) == 400


def test_both_zeros_are_one_score() -> None:
    assert content(ScoredRows.of([1, 1], [0.0, -0.0])) == content(ScoredRows.of([1, 1], [-0.0, 0.0]))


def test_the_arrays_given_are_left_as_they_are() -> None:
    labels, logits = np.array([1, 0, 1]), np.array([3.0, -0.0, 1.0])
    ScoredRows.of(labels, logits)
    assert np.signbit(logits[1]) and logits.tolist() == [3.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "message"),
    [
        ([0, 1, 1], [0.3, np.nan, 0.1], None, "score of row 1 is nan"),
        ([0, 1, 1], [0.3, 0.1, -np.inf], None, "score of row 2 is -inf"),
        ([0, 1, 2], [0.3, 0.2, 0.1], None, "label of row 2 is 2, not 0 or 1"),
        ([-1, 1], [0.3, 0.2], None, "label of row 0 is -1, not 0 or 1"),
        ([0, np.nan], [0.3, 0.2], None, "label of row 1 is nan"),
        ([0, 1], [0.3, 0.2], [1, -1], "weight of row 1 is -1"),
        ([0, 1], [0.3, 0.2], [np.nan, 1], "weight of row 0 is nan"),
        ([0, 1], [0.3, 0.2], [np.inf, 1], "weight of row 0 is inf"),
        ([0, 1, 1], [0.3, 0.2], None, r"labels of shape \(3,\)"),
        ([0, 1], [0.3, 0.2], [1], r"weights of shape \(1,\)"),
        ([[0, 1]], [[0.3, 0.2]], None, r"must be \(B,\)"),
    ],
)
def test_what_is_wrong_is_named(labels: Any, scores: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoredRows.of(labels, scores, weights)
