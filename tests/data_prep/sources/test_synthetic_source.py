from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from data_prep.sources.planted import PART_ROWS
from data_prep.sources.planted_shapes import SHAPES
from data_prep.sources.synthetic import SyntheticLog, write_synthetic
from data_prep.sources.synthetic_source import SyntheticSource, synthetic_source
from data_prep.split import ColumnSplit, RandomSplit, SplitRule

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ROWS = PART_ROWS + 20_000
FIELDS = {"criteo": 39, "avazu": 22}


@pytest.fixture(scope="module", params=SHAPES)
def log(
    request: pytest.FixtureRequest, local_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> SyntheticLog:
    return write_synthetic(str(tmp_path_factory.mktemp("log") / "raw"), ROWS, 7, request.param)


def _truth(log: SyntheticLog) -> tuple[np.ndarray, np.ndarray]:
    tables = [pq.read_table(path) for path in log.truths]
    return tuple(np.concatenate([table[name] for table in tables]) for name in ("label", "probability"))


def _read(source: SyntheticSource, rule: SplitRule) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels, splits, and the number of rejected rows, read from the raw log."""
    labels, splits, rejected = [], [], 0
    next_row = [0] * len(source.paths)
    for block in source.blocks():
        for rows in source.read(block, next_row[block.file]):
            labels.append(rows.labels)
            splits.append(rule(block.file, rows.numbers))
            rejected += len(rows.rejected)
        next_row[block.file] += source.count_rows(block)
    return np.concatenate(labels), np.concatenate(splits), rejected


def test_the_log_reads_as_its_raw_format_without_a_rejected_row(log: SyntheticLog) -> None:
    source = synthetic_source(log, block_bytes=5_000_000)

    labels, _, rejected = _read(source, RandomSplit(seed=1, validation_share=0.1, test_share=0.1))

    assert rejected == 0
    assert np.array_equal(labels, _truth(log)[0])
    assert len(source.fields) == FIELDS[log.shape]


def test_the_reported_scores_are_those_of_the_rows_that_are_read_as_test_rows(log: SyntheticLog) -> None:
    source = synthetic_source(log)
    rule = RandomSplit(seed=1, validation_share=0.1, test_share=0.3)
    labels, splits, _ = _read(source, rule)
    probabilities = _truth(log)[1]
    test = splits == 2

    facts = source.facts(rule)

    assert facts["bayes_split"] == "test"
    assert facts["bayes_auc"] == pytest.approx(roc_auc_score(labels[test], probabilities[test]), abs=2e-6)
    assert facts["bayes_log_loss"] == pytest.approx(log_loss(labels[test], probabilities[test]), abs=2e-6)


def test_without_a_test_split_all_rows_are_scored(log: SyntheticLog) -> None:
    facts = synthetic_source(log).facts(RandomSplit(seed=1, validation_share=0.0, test_share=0.0))

    assert facts["bayes_split"] == "all"
    assert facts["bayes_auc"] == pytest.approx(roc_auc_score(*_truth(log)), abs=2e-6)


def test_the_truth_is_read_file_by_file(log: SyntheticLog) -> None:
    requested: list[tuple[int, int, int]] = []

    class Asking(SplitRule):
        def __call__(self, file: int, numbers: np.ndarray, columns: Mapping[str, pl.Series]) -> np.ndarray:
            requested.append((file, int(numbers[0]), len(numbers)))
            return np.zeros(len(numbers), dtype=np.uint8)

    synthetic_source(log).facts(Asking())

    assert requested == [(0, 0, PART_ROWS), (1, 0, ROWS - PART_ROWS)]


def test_rows_split_by_the_hour_are_scored(log: SyntheticLog) -> None:
    rule = ColumnSplit(column="hour", validation_from=None, test_from="14103000")

    facts = synthetic_source(log).facts(rule)

    if log.shape == "criteo":
        assert facts["bayes_split"] == "all"
        return
    labels, probabilities = _truth(log)
    # The last tenth of a file is the tenth day; the second file ends before it.
    last_day = slice(PART_ROWS * 9 // 10 + 1, PART_ROWS)
    assert facts["bayes_split"] == "test"
    assert facts["bayes_auc"] == pytest.approx(
        roc_auc_score(labels[last_day], probabilities[last_day]), abs=2e-6
    )


def test_logs_of_another_seed_shape_or_length_are_other_sources(tmp_path: Path) -> None:
    variants = [(100, 1, "criteo"), (101, 1, "criteo"), (100, 2, "criteo"), (100, 1, "avazu")]
    sources = [synthetic_source(write_synthetic(str(tmp_path), *variant)) for variant in variants]

    identities = [source.identity() for source in sources]

    assert {identity["source"] for identity in identities} == {"synthetic"}
    assert all(a["log"] != b["log"] for i, a in enumerate(identities) for b in identities[:i])
