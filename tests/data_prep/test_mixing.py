"""A log whose rate of clicks drifts is trained as if it had been permuted as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.order import TrainingOrder
from data_prep import shuffle
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.in_this_process import in_this_process
from tests.data_prep.prepared import read_vocabulary

ROWS = 12_000
DECILES = 10
BATCH = 100
# Of a thousand sound orders one fails a test.
SMALLEST = 1e-3


def _write(path: Path, rows: int = ROWS, *, flip: bool = False) -> None:
    """A log of which every row says where it stood, and whose rate of clicks grows from 0.1 to 0.9."""
    position = np.arange(rows)
    clicks = np.random.default_rng(0).random(rows) < 0.1 + 0.8 * position / rows
    decile = position * DECILES // rows
    pl.DataFrame(
        {
            "click": (clicks ^ flip).astype(int),
            "row": position.astype(float),
            "decile": [f"d{d}" for d in decile],
        }
    ).write_csv(path)


def _prepare(
    log: Path, output: Path, rows_per_shard: int, *, seed: int = 0, block_bytes: int = 20_000
) -> Manifest:
    columns = ColumnOptions(label="click", numeric=("row",), categorical=("decile",))
    source = TabularSource([str(log)], columns, block_bytes=block_bytes)
    protocol = Protocol(seed=seed, validation_share=0, test_share=0, rows_per_shard=rows_per_shard)
    with in_this_process():
        return prepare(source, str(output), protocol)


def _epoch(manifest: Manifest, **order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, place in the log and decile of the log of every row, in the order of an epoch."""
    epoch = order.pop("epoch", 0)
    batches = list(
        TrainingOrder(**{"manifest": manifest, "batch_size": BATCH, "seed": 1, **order}).batches(epoch)
    )
    labels = np.concatenate([batch.labels.numpy() for batch in batches]).astype(int)
    numbers = np.concatenate([batch.numeric[:, 0].numpy() for batch in batches])
    ids = np.concatenate([batch.ids[:, 0].numpy() for batch in batches])
    tokens = [token for _, token, _ in read_vocabulary(manifest, "decile")]
    deciles = np.array([int(str(token)[1:]) if token else -1 for token in tokens])[ids]
    return labels, np.argsort(np.argsort(numbers)), deciles


def _p_value(kinds: np.ndarray, of_batch: int = BATCH) -> float:
    """Of the homogeneity of batches: how likely a full permutation is as badly mixed."""
    batch = np.arange(len(kinds)) // of_batch
    counts = np.zeros((batch[-1] + 1, kinds.max() + 1))
    np.add.at(counts, (batch, kinds), 1)
    return float(stats.chi2_contingency(counts).pvalue)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "clicks.csv"
    _write(path)
    return path


@pytest.fixture(scope="module", params=[1, 2, 7, 60], ids="{} shards".format)
def dataset(request: pytest.FixtureRequest, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    output = tmp_path_factory.mktemp("dataset")
    made = _prepare(log, output, -(-ROWS // request.param))
    assert len(made.shards("train")) == request.param
    return made


@pytest.mark.parametrize("window", [1, 150, 2_000, 200_000])
def test_batches_are_as_mixed_as_those_of_a_full_permutation(dataset: Manifest, window: int) -> None:
    labels, places, deciles = _epoch(dataset, window=window)

    assert sorted(places) == list(range(ROWS))
    assert _p_value(labels) > SMALLEST
    assert _p_value(deciles) > SMALLEST
    # Stretches longer than any window, and neighbours.
    assert _p_value(deciles, 1_000) > SMALLEST
    assert abs(stats.spearmanr(np.arange(ROWS), places)[0]) < 3.3 / np.sqrt(ROWS)
    assert abs(stats.spearmanr(places[:-1], places[1:])[0]) < 3.3 / np.sqrt(ROWS)


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_worker_s_batches_are_as_mixed(dataset: Manifest, world_size: int) -> None:
    for rank in range(world_size):
        labels, _, deciles = _epoch(dataset, window=500, rank=rank, world_size=world_size)

        assert _p_value(labels, BATCH // world_size) > SMALLEST
        assert _p_value(deciles, BATCH // world_size) > SMALLEST


def test_epochs_take_the_rows_in_other_orders_and_repeat(dataset: Manifest) -> None:
    first, second = (_epoch(dataset, epoch=epoch)[1] for epoch in (0, 1))

    assert abs(stats.spearmanr(first, second)[0]) < 3.3 / np.sqrt(ROWS)
    assert _epoch(dataset, epoch=1)[1].tolist() == second.tolist()


def test_a_full_permutation_passes_and_the_order_of_the_log_fails() -> None:
    deciles = np.arange(ROWS) * DECILES // ROWS

    assert _p_value(np.random.default_rng(0).permutation(deciles)) > SMALLEST
    assert _p_value(deciles) < 1e-100


def test_the_order_is_one_of_the_rows_alone(log: Path, tmp_path: Path) -> None:
    flipped = tmp_path / "flipped.csv"
    _write(flipped, flip=True)

    one, other = _prepare(log, tmp_path / "one", 2_000), _prepare(flipped, tmp_path / "other", 2_000)

    (labels, places, _), (opposite, same_places, _) = _epoch(one, epoch=2), _epoch(other, epoch=2)
    assert places.tolist() == same_places.tolist()
    assert labels.tolist() == (1 - opposite).tolist()


def test_the_seed_changes_the_order(log: Path, tmp_path: Path) -> None:
    places = [_epoch(_prepare(log, tmp_path / str(seed), 2_000, seed=seed))[1] for seed in (0, 1)]

    assert abs(stats.spearmanr(*places)[0]) < 3.3 / np.sqrt(ROWS)


def test_runs_buckets_and_blocks_change_no_bit(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _prepare(log, tmp_path / "whole", 700, block_bytes=1 << 20)

    for number, (fan, memory, block_bytes) in enumerate(
        [(1, 1 << 20, 5_000), (3, 40_000, 5_000), (128, 1, 9_999)]
    ):
        monkeypatch.setattr(shuffle, "FAN", fan)
        monkeypatch.setattr(shuffle, "MEMORY_BYTES", memory)
        other = _prepare(log, tmp_path / str(number), 700, block_bytes=block_bytes)
        assert other.fingerprint() == whole.fingerprint()
