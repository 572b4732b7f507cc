"""The second pass over one group of blocks: raw rows to Parquet shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.dataset.manifest import Field, Shard
from afm_dist.errors import DataError
from data_prep.groups import Group, shard_sizes
from data_prep.numeric import transform
from data_prep.sources.source import Source
from data_prep.split import SPLITS, SplitRule
from data_prep.vocabulary import UNKNOWN, Encoder

ROW_GROUP_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What shards look like: the label column and the fields, in order."""

    label: str
    fields: tuple[Field, ...]

    def arrow(self) -> pa.Schema:
        """The shards' Arrow schema."""
        columns = [pa.field(self.label, pa.uint8(), nullable=False)]
        for f in self.fields:
            is_id = f.kind == "categorical"
            columns.append(pa.field(f.name, pa.int32() if is_id else pa.float32(), nullable=not is_id))
        return pa.schema(columns)


@dataclass(kw_only=True)
class GroupShards:
    """What the second pass wrote for one group.

    Attributes:
        shards: Per split, in order.
        unknown: Per split and categorical field: rows whose id is 0.
    """

    shards: dict[str, list[Shard]] = field(default_factory=lambda: {name: [] for name in SPLITS})
    unknown: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in SPLITS})

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a receipt."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> GroupShards:
        """The inverse of ``to_json``."""
        shards = {name: [Shard(**entry) for entry in entries] for name, entries in content["shards"].items()}
        return cls(shards=shards, unknown=content["unknown"])


def standardise(values: np.ndarray, of: Field) -> np.ndarray:
    """Raw numbers (B) to ``(sign(x)·ln(1+|x|) − mean) / deviation`` in float32."""
    return ((transform(values) - of.mean) / of.deviation).astype(np.float32)


def encode_frame(frame: pl.DataFrame, schema: Schema, encoders: Mapping[str, Encoder]) -> pa.Table:
    """Raw columns to the columns of a shard."""
    columns: list[pa.Array] = [pa.array(frame[schema.label].to_numpy(), type=pa.uint8())]
    for f in schema.fields:
        raw = frame[f.name]
        if f.kind == "categorical":
            columns.append(pa.array(encoders[f.name].encode(raw), type=pa.int32()))
        else:
            missing = raw.is_null().to_numpy()
            columns.append(pa.array(standardise(raw.fill_null(0.0).to_numpy(), f), mask=missing))
    return pa.Table.from_arrays(columns, schema=schema.arrow())


def shard_bytes(table: pa.Table) -> bytes:
    """A shard's content."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", write_statistics=False, row_group_size=ROW_GROUP_ROWS)
    return bytes(sink.getvalue().to_pybytes())


class _SplitWriter:
    """Collects rows of one split and writes shards of the planned sizes."""

    def __init__(self, dataset: str, split: str, first_shard: int, sizes: Sequence[int]) -> None:
        self.dataset = dataset
        self.split = split
        self.next_shard = first_shard
        self.sizes = list(sizes)
        self.shards: list[Shard] = []
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._rows += table.num_rows
        while self.sizes and self._rows >= self.sizes[0]:
            whole = pa.concat_tables(self._waiting)
            size = self.sizes.pop(0)
            self._write(whole.slice(0, size).combine_chunks())
            rest = whole.slice(size)
            self._waiting, self._rows = [rest], rest.num_rows

    def _write(self, table: pa.Table) -> None:
        data = shard_bytes(table)
        path = f"{self.split}/part-{self.next_shard:05d}.parquet"
        storage.write_bytes(storage.join(self.dataset, path), data)
        self.shards.append(
            Shard(path=path, rows=table.num_rows, bytes=len(data), sha256=storage.sha256(data))
        )
        self.next_shard += 1

    def close(self) -> None:
        if self.sizes or self._rows:
            raise DataError(
                f"{self.dataset}: the input changed while it was being prepared; run the same command again"
            )


def encode_group(
    source: Source,
    group: Group,
    split: SplitRule,
    schema: Schema,
    dataset: str,
    encoder_paths: Mapping[str, str],
    rows_per_shard: int,
    split_rows: Sequence[int],
    first_shards: Sequence[int],
) -> GroupShards:
    """Write one group's shards, holding at most one shard per split in memory.

    Args:
        source: The raw log.
        group: The blocks to read.
        split: The same rule as in the first pass.
        schema: Label and fields, with the training split's means and deviations.
        dataset: The dataset directory.
        encoder_paths: Per categorical field, its encoder.
        rows_per_shard: Largest number of rows of a shard.
        split_rows: Rows of this group per split, from the first pass.
        first_shards: Number of the group's first shard per split.
    """
    encoders = {name: Encoder.load(path) for name, path in encoder_paths.items()}
    result = GroupShards(unknown={name: dict.fromkeys(encoders, 0) for name in SPLITS})
    writers = [
        _SplitWriter(dataset, name, first_shards[i], shard_sizes(split_rows[i], rows_per_shard))
        for i, name in enumerate(SPLITS)
    ]
    for block, first_row in zip(group.blocks, group.first_rows, strict=True):
        for rows in source.read(block, first_row):
            table = encode_frame(rows.frame, schema, encoders)
            splits = split(block.file, rows.numbers)
            for index, writer in enumerate(writers):
                part = table.filter(pa.array(splits == index))
                for name in encoders:
                    ids = part.column(name).to_numpy()
                    result.unknown[SPLITS[index]][name] += int((ids == UNKNOWN).sum())
                writer.add(part)
    for writer in writers:
        writer.close()
        result.shards[writer.split] = writer.shards
    return result
