"""What a preparation would read and write; starts nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from afm_dist import console
from data_prep.protocol import Protocol, SplitBy
from data_prep.sources import files
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.planted import PART_ROWS
from data_prep.sources.planted_shapes import SHAPES, ShapeName
from data_prep.sources.source import RawField, Source
from data_prep.sources.text_log import TextLog

FORMATS: Mapping[ShapeName, type[TextLog]] = {"criteo": CriteoSource, "avazu": AvazuSource}
BYTES_PER_VALUE = 4
MEMORY_PER_WORKER_MB = 500
ROWS_PER_SECOND_AND_CORE = 150_000


@dataclass(frozen=True, kw_only=True)
class _Log:
    """What is read: its fields, its size, the rows of each file, and the number of blocks."""

    fields: Sequence[RawField]
    bytes: int
    rows_of_files: Sequence[int]
    n_blocks: int

    @property
    def rows(self) -> int:
        return sum(self.rows_of_files)


def show_plan(source: Source, protocol: Protocol) -> None:
    """What a preparation would read and write; starts nothing.

    Raises:
        OptionError: the protocol does not fit the log.
    """
    blocks = source.blocks()
    size = sum(files.describe(path).bytes for path in source.paths)
    rows = [0] * len(source.paths)
    for block in blocks:
        rows[block.file] += block.expected_rows
    log = _Log(fields=source.fields, bytes=size, rows_of_files=rows, n_blocks=len(blocks))
    console.say(f"reads {len(rows)} files, {size / 1e6:,.1f} MB, about {log.rows:,} rows")
    _show(log, protocol)


def show_synthetic_plan(rows: int, shape: ShapeName, protocol: Protocol) -> None:
    """The same for a log that is not written yet.

    Raises:
        OptionError: the protocol does not fit the log.
    """
    rows_of_files = [min(PART_ROWS, rows - first) for first in range(0, rows, PART_ROWS)]
    log = _Log(
        fields=[column.field for column in FORMATS[shape].layout],
        bytes=rows * SHAPES[shape].bytes_per_row,
        rows_of_files=rows_of_files,
        n_blocks=len(rows_of_files),
    )
    console.say(f"writes a raw log of {rows:,} rows, about {log.bytes / 1e6:,.1f} MB, and reads it")
    _show(log, protocol)


def _show(log: _Log, protocol: Protocol) -> None:
    protocol.split(len(log.rows_of_files))
    n_fields = len(protocol.rules(log.fields))
    shards = log.rows * (1 + BYTES_PER_VALUE * n_fields)
    cores = os.cpu_count() or 1
    splits = _SPLIT[protocol.split_by](log, protocol)
    console.say("stages:")
    console.say("  scan: counts the rows of every block of a file that is cut into several")
    console.say(f"  parse: {log.n_blocks:,} blocks, one task each; {splits}")
    console.say(f"  vocabulary: {n_fields:,} fields, ids of tokens and scales of numbers")
    console.say(f"  encode: shards of up to {protocol.rows_per_shard:,} rows, up to {shards / 1e6:,.1f} MB")
    console.say(
        f"needs up to {2 * shards / 1e6:,.1f} MB of disk, and about {MEMORY_PER_WORKER_MB} MB per worker"
    )
    console.say(
        f"takes very roughly {_time(log.rows / (ROWS_PER_SECOND_AND_CORE * cores))} on {cores} cores "
        f"(at {ROWS_PER_SECOND_AND_CORE:,} rows a second and core, after Ray has started)"
    )


def _by_row(log: _Log, protocol: Protocol) -> str:
    held_out = protocol.validation_share + protocol.test_share
    return _split_line(log.rows * (1 - held_out), log.rows, protocol)


def _by_last_file(log: _Log, protocol: Protocol) -> str:
    last = log.rows_of_files[-1]
    return _split_line(log.rows - last, last, protocol)


def _split_line(train: float, shared_out: int, protocol: Protocol) -> str:
    return (
        f"about {train:,.0f} training, {shared_out * protocol.validation_share:,.0f} validation and "
        f"{shared_out * protocol.test_share:,.0f} test rows"
    )


def _by_column(log: _Log, protocol: Protocol) -> str:
    return f"column {protocol.split_column!r} decides how many rows each split has"


_SPLIT: Mapping[SplitBy, Callable[[_Log, Protocol], str]] = {
    "row": _by_row,
    "last-file": _by_last_file,
    "column": _by_column,
}


def _time(seconds: float) -> str:
    return f"{max(seconds, 1):,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
