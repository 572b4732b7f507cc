"""Rows a second from shards to training batches on one thread, against merely decoding the columns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Field, Manifest, Shard
from afm_dist.dataset.order import TrainingOrder
from afm_dist.dataset.reader import read_batches
from afm_dist.evaluation.timing import time_interleaved
from jobs.benchmarks.conditions import one_thread
from jobs.benchmarks.criteo_shape import cardinalities, fields
from jobs.benchmarks.result import Result, rates

SUITE = "prepare"
DECODING = "decode shards, no batches"
ROW_BYTES = "a row in shards"
BATCH_SIZES = (1_000, 10_000)
VOCABULARY = 10_000_000
SHARD_ROWS = 100_000
ROW_GROUP_ROWS = 1 << 16
DICTIONARY_LIMIT = 4096
LABEL = "label"


def run(*, rows: int, rounds: int) -> list[Result]:
    """Reading verifies checksums, ids and labels; decoding does not."""
    with tempfile.TemporaryDirectory(prefix="afm-dist-") as folder, one_thread():
        manifest = write_dataset(folder, rows)
        seconds = time_interleaved(actions(manifest), rounds, warm_up=1)
    size = sum(shard.bytes for shard in manifest.shards("train")) / rows
    return [
        *rates(SUITE, rows, seconds, DECODING),
        Result(suite=SUITE, name=ROW_BYTES, value=size, unit="bytes"),
    ]


def actions(manifest: Manifest) -> dict[str, Callable[[], int]]:
    """What is timed, by name; each reads the whole training split and returns its rows."""
    timed: dict[str, Callable[[], int]] = {DECODING: partial(_decode, manifest)}
    shards = manifest.shards("train")
    for size in BATCH_SIZES:
        order = TrainingOrder(manifest=manifest, batch_size=size, seed=0)
        in_order = partial(read_batches, manifest, shards, size)
        timed[f"read shards, batch {size}"] = partial(_count, in_order)
        timed[f"read shuffled, batch {size}"] = partial(_count, partial(order.batches, 0))
    return timed


def write_dataset(folder: str, rows: int, vocabulary: int = VOCABULARY) -> Manifest:
    """A training split of 26 columns of ids and 13 of numbers, in Criteo's proportions."""
    generator = np.random.default_rng(0)
    schema = fields(cardinalities(vocabulary))
    shards = [
        _write_shard(folder, f"train/part-{i:05d}.parquet", min(SHARD_ROWS, rows - start), schema, generator)
        for i, start in enumerate(range(0, rows, SHARD_ROWS))
    ]
    return Manifest(location=folder, label=LABEL, fields=tuple(schema), splits={"train": tuple(shards)})


def _write_shard(
    folder: str, path: str, rows: int, schema: list[Field], generator: np.random.Generator
) -> Shard:
    label = pa.field(LABEL, pa.uint8(), nullable=False)
    columns, arrays = [label], [pa.array((generator.random(rows) < 0.25).astype(np.uint8))]
    for field in schema:
        if field.kind == "categorical":
            # Id k is drawn with a probability of about 1/(k + 1).
            ids = field.cardinality ** generator.random(rows) - 1
            columns.append(pa.field(field.name, pa.int32(), nullable=False))
            arrays.append(pa.array(ids.astype(np.int32)))
        else:
            counts = np.floor(generator.lognormal(1, 2, rows))
            columns.append(pa.field(field.name, pa.float32()))
            arrays.append(pa.array(np.log1p(counts).astype(np.float32), mask=generator.random(rows) < 0.2))
    target = Path(folder, path)
    target.parent.mkdir(exist_ok=True)
    pq.write_table(
        pa.table(arrays, schema=pa.schema(columns)),
        target,
        # Where values repeat within a row group; elsewhere it costs time and saves nothing.
        use_dictionary=[field.name for field in schema if field.cardinality <= DICTIONARY_LIMIT],
        compression="none",
        write_statistics=False,
        row_group_size=ROW_GROUP_ROWS,
    )
    content = target.read_bytes()
    return Shard(path=path, rows=rows, bytes=len(content), sha256=storage.sha256(content))


def _decode(manifest: Manifest) -> int:
    rows = 0
    names = [manifest.label, *(field.name for field in manifest.fields)]
    for shard in manifest.shards("train"):
        file = pq.ParquetFile(Path(manifest.location, shard.path))
        for group in range(file.num_row_groups):
            rows += file.read_row_group(group, columns=names, use_threads=False).num_rows
    return rows


def _count(read: Callable[[], Iterable[Batch]]) -> int:
    return sum(len(batch) for batch in read())
