"""Scores of raw rows are those of the prepared rows: nothing is computed twice in two ways."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.reader import read_shard
from afm_dist.evaluation.score import score_shards
from data_prep.protocol import ColumnRule, Protocol
from data_prep.scoring import block
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.source import Source
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from data_prep.split import SPLITS
from tests.data_prep.prepared import in_written_order
from tests.data_prep.raw_logs import avazu_text, criteo_text
from tests.data_prep.scoring.conftest import HEADER, ROWS, clicks, write_csv
from tests.data_prep.scoring.models import train

CLICK = ColumnOptions(label="click")
PROTOCOL = Protocol(rows_per_shard=100)
BUCKETS = Protocol(
    columns=(ColumnRule(column="I*", transform="log-square-bucket"),), rows_per_shard=100, threshold=3
)
TIMES = Protocol(
    columns=(
        ColumnRule(column="hour", transform="hour-of-day", time_format="%y%m%d%H"),
        ColumnRule(column="hour", transform="weekend", field="weekend", time_format="%y%m%d%H"),
    ),
    rows_per_shard=100,
)


def _criteo(folder: Path) -> tuple[Path, Source]:
    log = folder / "train.txt"
    log.write_text(criteo_text(ROWS))
    return log, CriteoSource([str(log)])


def _avazu(folder: Path) -> tuple[Path, Source]:
    log = folder / "train.gz"
    log.write_bytes(gzip.compress(avazu_text(ROWS).encode()))
    return log, AvazuSource([str(log)])


def _csv(folder: Path) -> tuple[Path, Source]:
    log = write_csv(folder / "clicks.csv", HEADER, clicks())
    return log, TabularSource([str(log)], CLICK, block_bytes=2_000)


def _parquet(folder: Path) -> tuple[Path, Source]:
    log = folder / "clicks.parquet"
    frame = pl.DataFrame(clicks(), schema=HEADER, orient="row").with_columns(
        pl.col("price").cast(pl.Float64, strict=False), pl.col("click").cast(pl.Int8), day=pl.lit(7)
    )
    frame.write_parquet(log, row_group_size=250)
    return log, TabularSource([str(log)], CLICK)


@pytest.mark.parametrize(
    ("write", "protocol"),
    [(_criteo, PROTOCOL), (_criteo, BUCKETS), (_avazu, TIMES), (_csv, PROTOCOL), (_parquet, PROTOCOL)],
    ids=["criteo", "criteo buckets", "avazu times", "csv", "parquet"],
)
def test_scores_of_raw_rows_are_those_of_the_prepared_ones(
    write: Callable[[Path], tuple[Path, Source]],
    protocol: Protocol,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = train(*write(tmp_path), protocol, tmp_path)
    made: list[Batch] = []
    logits_of = block._logits

    def noting(model, columns, scoring):
        made.append(columns[0 : len(columns)])
        return logits_of(model, columns, scoring)

    monkeypatch.setattr(block, "_logits", noting)

    trained.predict(tmp_path / "scores.parquet")

    result = pq.read_table(tmp_path / "scores.parquet")
    assert result["row"].to_pylist() == list(range(ROWS))
    raw, logits = Batch.concatenate(made), result["logit"].to_numpy()
    splits = protocol.split(1)(0, np.arange(ROWS), {})
    for index, name in enumerate(SPLITS):
        rows = in_written_order(np.flatnonzero(splits == index), name, trained.data)
        shards = trained.data.shards(name)
        prepared = Batch.concatenate([read_shard(trained.data, shard) for shard in shards])
        assert torch.equal(raw.ids[rows], prepared.ids)
        assert torch.equal(raw.numeric[rows], prepared.numeric)
        scored = score_shards(trained.model, trained.data, shards)
        for label, sorted_scores in ((1.0, scored.positives), (0.0, scored.negatives)):
            of_label = logits[rows[(prepared.labels == label).numpy()]]
            np.testing.assert_allclose(np.sort(of_label), sorted_scores.values, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        result["score"].to_numpy(), 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-6
    )
