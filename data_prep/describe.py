"""What a dataset directory holds, or would hold, as tables for people."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from afm_dist import console, storage
from afm_dist.dataset.manifest import Field, Manifest
from data_prep.protocol import Protocol
from data_prep.sources import files
from data_prep.sources.source import Source
from data_prep.sources.synthetic import BYTES_PER_ROW
from data_prep.vocabulary import vocabulary_path

TOP_TOKENS = 3
WIDTH_IN_FILES = 150
SYNTHETIC_FIELDS = 39
BYTES_PER_VALUE = 4
MEMORY_PER_WORKER_MB = 500


def show_summary(manifest: Manifest) -> None:
    """Rows and label rate per split, and what was rejected."""
    facts = manifest.facts
    table = Table("split", "rows", "positive", "shards", "MB", title=f"{manifest.location}")
    for name, shards in manifest.splits.items():
        counts = facts["splits"][name]
        rate = f"{counts['positives'] / counts['rows']:.2%}" if counts["rows"] else "-"
        size = sum(shard.bytes for shard in shards) / 1e6
        table.add_row(name, f"{counts['rows']:,}", rate, str(len(shards)), f"{size:,.1f}")
    _print(table)
    ids = sum(f.cardinality for f in manifest.categorical)
    console.say(
        f"{len(manifest.categorical)} categorical fields with {ids:,} ids (threshold {facts['threshold']}), "
        f"{len(manifest.numeric)} numeric fields; "
        f"{facts['rows_rejected']:,} of {facts['rows_read']:,} rows rejected"
    )
    if facts.get("bayes_auc") is not None:
        console.say(
            f"the true probabilities reach AUC {facts['bayes_auc']:.4f} and log loss "
            f"{facts['bayes_log_loss']:.4f} on the {facts['bayes_split']} rows: no model can do better"
        )


def show(location: str) -> None:
    """Everything worth knowing about a dataset directory.

    Raises:
        DataError: it is none.
    """
    manifest = Manifest.load(location)
    show_summary(manifest)
    unknown = manifest.facts["unknown_share"]
    table = Table("field", "kind", "ids", "missing")
    for heading in (*(f"unknown in {name}" for name in unknown), "most frequent in training"):
        table.add_column(heading)
    for f in manifest.fields:
        missing = f"{manifest.facts['missing_share'][f.name]:.1%}"
        if f.kind == "categorical":
            shares = [f"{unknown[name][f.name]:.1%}" for name in unknown]
            table.add_row(f.name, f.kind, f"{f.cardinality:,}", missing, *shares, _top_tokens(manifest, f))
        else:
            spread = f"log scale: mean {f.mean:.3f}, deviation {f.deviation:.3f}"
            table.add_row(f.name, f.kind, "", missing, *("" for _ in unknown), spread)
    _print(table)


def _print(table: Table) -> None:
    width = console.out.width
    if not console.out.is_terminal:
        console.out.width = WIDTH_IN_FILES
    console.out.print(table)
    console.out.width = width


def _top_tokens(manifest: Manifest, field: Field) -> str:
    data = storage.read_bytes(storage.join(manifest.location, vocabulary_path(field.name)))
    file = pq.ParquetFile(pa.BufferReader(data))
    frame = pl.DataFrame(file.read_row_group(0)).filter(pl.col("id") > 0).head(TOP_TOKENS)
    rows = max(1, manifest.rows("train"))
    return ", ".join(f"{token or '(missing)'} {count / rows:.1%}" for _, token, count in frame.iter_rows())


def show_plan(source: Source, protocol: Protocol) -> None:
    """What a preparation would read and write; starts nothing."""
    blocks = source.blocks()
    size = sum(files.describe(path).bytes for path in source.paths)
    rows = sum(block.expected_rows for block in blocks)
    console.say(f"reads {len(source.paths)} files, {size / 1e6:,.1f} MB, about {rows:,} rows")
    console.say(f"  in {len(blocks)} blocks, one task each")
    _say_writes(rows, len(source.fields), protocol)


def show_synthetic_plan(rows: int, protocol: Protocol) -> None:
    """The same for a log that is not written yet."""
    console.say(
        f"writes a raw log of {rows:,} rows, about {rows * BYTES_PER_ROW / 1e6:,.1f} MB, and reads it"
    )
    _say_writes(rows, SYNTHETIC_FIELDS, protocol)


def _say_writes(rows: int, n_fields: int, protocol: Protocol) -> None:
    shards = rows * (1 + BYTES_PER_VALUE * n_fields)
    train = 1 - protocol.validation_share - protocol.test_share
    console.say(
        f"writes about {rows * train:,.0f} training, {rows * protocol.validation_share:,.0f} validation and "
        f"{rows * protocol.test_share:,.0f} test rows, up to {shards / 1e6:,.1f} MB of shards"
    )
    console.say(
        f"needs up to {2 * shards / 1e6:,.1f} MB of disk, and about {MEMORY_PER_WORKER_MB} MB per worker"
    )
