"""What a preparation would read and write; starts nothing."""

from __future__ import annotations

from afm_dist import console
from data_prep.protocol import Protocol
from data_prep.sources import files
from data_prep.sources.source import Source
from data_prep.sources.synthetic import BYTES_PER_ROW

SYNTHETIC_FIELDS = 39
BYTES_PER_VALUE = 4
MEMORY_PER_WORKER_MB = 500


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
