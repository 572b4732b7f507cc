from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from afm_dist.errors import OptionError
from data_prep.sources import synthetic
from data_prep.sources.planted import CARDINALITIES, PlantedModel
from data_prep.sources.synthetic import SyntheticLog, SyntheticSource, write_synthetic
from data_prep.split import SplitRule

ROWS = 40_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> SyntheticLog:
    return write_synthetic(str(tmp_path_factory.mktemp("raw") / "log"), ROWS, seed=7)


def _truth(log: SyntheticLog) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(log.truth)
    return table["label"].to_numpy(), table["probability"].to_numpy()


def test_the_log_reads_as_criteo_without_a_rejected_row(log: SyntheticLog) -> None:
    source = SyntheticSource(log, block_bytes=2_000_000)
    pieces = [piece for block in source.blocks() for piece in source.read(block, 0)]

    labels = np.concatenate([piece.frame["label"].to_numpy() for piece in pieces])
    assert [bad for piece in pieces for bad in piece.rejected] == []
    assert labels.tolist() == _truth(log)[0].tolist()
    assert min(piece.frame["I2"].min() for piece in pieces) == -3
    missing = [
        sum(piece.frame[name].null_count() for piece in pieces) / ROWS for name in ("I2", "I12", "C22")
    ]
    assert missing == pytest.approx([0.0, 0.765, 0.762], abs=0.01)


def test_the_planted_shares_and_the_best_auc_are_those_promised() -> None:
    rows = PlantedModel(3).rows(0, 200_000)

    assert rows.label.mean() == pytest.approx(0.256, abs=0.005)
    assert roc_auc_score(rows.label, rows.probability) == pytest.approx(0.80, abs=0.005)


def test_the_reported_scores_are_those_of_the_true_probabilities(log: SyntheticLog) -> None:
    rule = SplitRule(seed=1, validation_share=0.1, test_share=0.3)
    labels, probabilities = _truth(log)
    test = rule(0, np.arange(ROWS)) == 2

    facts = SyntheticSource(log).facts(rule)

    assert facts["bayes_split"] == "test"
    assert facts["bayes_auc"] == pytest.approx(roc_auc_score(labels[test], probabilities[test]), abs=2e-6)
    assert facts["bayes_log_loss"] == pytest.approx(log_loss(labels[test], probabilities[test]), abs=2e-6)


def test_without_a_test_split_all_rows_are_scored(log: SyntheticLog) -> None:
    facts = SyntheticSource(log).facts(SplitRule(seed=1, validation_share=0.0, test_share=0.0))

    assert facts["bayes_split"] == "all"
    assert facts["bayes_auc"] == pytest.approx(roc_auc_score(*_truth(log)), abs=2e-6)


def test_the_same_seed_gives_the_same_bytes_and_more_rows_keep_the_first_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "BLOCK_ROWS", 500)
    texts = [
        Path(write_synthetic(str(tmp_path / name), rows, seed).path).read_bytes()
        for name, rows, seed in (("a", 1000, 1), ("b", 1000, 1), ("c", 1300, 1), ("d", 1000, 2))
    ]

    assert texts[0] == texts[1] != texts[3]
    assert texts[2].startswith(texts[0])
    assert texts[2].count(b"\n") == 1300


def test_a_log_that_is_there_is_not_written_again_but_another_is(tmp_path: Path) -> None:
    folder = str(tmp_path / "raw")
    first = write_synthetic(folder, 100, 1)
    written = Path(first.path).stat().st_mtime_ns

    assert write_synthetic(folder, 100, 1) == first
    assert Path(first.path).stat().st_mtime_ns == written
    assert Path(write_synthetic(folder, 101, 1).path).read_bytes().count(b"\n") == 101
    assert sorted(path.name for path in Path(folder).iterdir()) == ["log.json", "train.txt", "truth.parquet"]


def test_tokens_of_a_field_are_distinct() -> None:
    for field in (2, 8, 20):
        codes = PlantedModel(0).token_codes(field)
        assert len(np.unique(codes)) == CARDINALITIES[field]


def test_a_log_needs_rows_and_a_local_folder(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--rows 0"):
        write_synthetic(str(tmp_path), 0, 1)
    with pytest.raises(OptionError, match="written to a local folder"):
        write_synthetic("s3://bucket/raw", 10, 1)


def test_a_log_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("precious")
    (tmp_path / "notes.txt").write_text("too")

    with pytest.raises(OptionError, match=r"train\.txt: not a synthetic log"):
        write_synthetic(str(tmp_path), 10, 1)

    assert (tmp_path / "train.txt").read_text() == "precious"
    (tmp_path / "train.txt").unlink()
    write_synthetic(str(tmp_path), 10, 1)
    assert (tmp_path / "notes.txt").read_text() == "too"
