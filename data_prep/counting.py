"""The first pass over one group of blocks: tokens, numeric sums, labels, rejected rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.errors import DataError
from data_prep.groups import Group
from data_prep.numeric import ExactSums, transform
from data_prep.sources.source import RawRows, Rejected, Source
from data_prep.split import SPLITS, TRAIN, SplitRule

SPILL_TOKENS = 4_000_000
REJECTED_SHOWN = 10
REJECTED_PER_FILE = 10_000
HOPELESS_ROWS = 100_000


@dataclass(kw_only=True)
class GroupCounts:
    """What the first pass found in one group; the token counts themselves lie in files.

    Attributes:
        rows: Good rows.
        rejected: Number of malformed rows.
        offenders: The first of them, as ``file:line reason``.
        split_rows: Rows per split.
        positives: Rows with label 1 per split.
        missing: Missing values per field, over all splits.
        sums: Sums of each numeric field over the training split.
        parts: Number of files of token counts.
    """

    rows: int = 0
    rejected: int = 0
    offenders: list[str] = field(default_factory=list)
    split_rows: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    positives: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    missing: dict[str, int] = field(default_factory=dict)
    sums: dict[str, ExactSums] = field(default_factory=dict)
    parts: int = 0

    def __add__(self, other: GroupCounts) -> GroupCounts:
        return GroupCounts(
            rows=self.rows + other.rows,
            rejected=self.rejected + other.rejected,
            offenders=(self.offenders + other.offenders)[:REJECTED_SHOWN],
            split_rows=[a + b for a, b in zip(self.split_rows, other.split_rows, strict=True)],
            positives=[a + b for a, b in zip(self.positives, other.positives, strict=True)],
            missing={
                name: self.missing.get(name, 0) + other.missing.get(name, 0)
                for name in {**self.missing, **other.missing}
            },
            sums={
                name: self.sums.get(name, ExactSums()) + other.sums.get(name, ExactSums())
                for name in {**self.sums, **other.sums}
            },
            parts=self.parts + other.parts,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a receipt."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> GroupCounts:
        """The inverse of ``to_json``."""
        sums = {name: ExactSums(**entry) for name, entry in content["sums"].items()}
        return cls(**{**content, "sums": sums})


def part_path(folder: str, group: int, part: int) -> str:
    """Where a group's token counts lie."""
    return storage.join(folder, f"group-{group:05d}-{part:03d}.parquet")


def count_group(source: Source, group: Group, split: SplitRule, folder: str, rejected: str) -> GroupCounts:
    """Count one group of blocks in bounded memory.

    Args:
        source: The raw log.
        group: The blocks to read.
        split: Decides which rows are training rows; only their tokens are counted.
        folder: Where the token counts go.
        rejected: The folder for malformed rows.

    Raises:
        DataError: the first 100,000 rows are malformed without exception.
    """
    counts = GroupCounts(sums={name: ExactSums() for name in source.numeric})
    tokens = _TokenCounts(source, folder, group.index)
    rejects = _RejectedRows(rejected, group.index)
    for block, first_row in zip(group.blocks, group.first_rows, strict=True):
        path = source.paths[block.file]
        for rows in source.read(block, first_row):
            _count_rows(source, rows, split(block.file, rows.numbers), counts, tokens)
            for bad in rows.rejected:
                counts.rejected += 1
                if len(counts.offenders) < REJECTED_SHOWN:
                    counts.offenders.append(f"{path}:{bad.line} {bad.reason}")
                rejects.add(path, bad)
            if counts.rows == 0 and counts.rejected >= HOPELESS_ROWS:
                raise DataError(all_rejected(source.label, counts))
    tokens.spill()
    rejects.flush()
    counts.parts = tokens.parts
    return counts


def all_rejected(label: str, counts: GroupCounts) -> str:
    """What to say when not one row is good."""
    first = "; ".join(counts.offenders)
    rows = f"{counts.rejected:,} rows"
    labels = [offender.partition(" label ")[2] for offender in counts.offenders]
    if all(labels):
        shown = ", ".join(sorted({text.removesuffix(" is not 0 or 1") for text in labels}))
        return (
            f"not one of {rows} has a label of 0 or 1: column '{label}' holds {shown}; "
            f"write 1 for a click and 0 for none, or name another column with --label ({first})"
        )
    return f"every one of {rows} is malformed; the first: {first}"


class _RejectedRows:
    """Malformed rows as lines of JSON, in files of bounded size."""

    def __init__(self, folder: str, group: int) -> None:
        self.folder = folder
        self.group = group
        self.files = 0
        self._lines: list[str] = []

    def add(self, path: str, bad: Rejected) -> None:
        self._lines.append(storage.json_line({"file": path, **asdict(bad)}) + "\n")
        if len(self._lines) >= REJECTED_PER_FILE:
            self.flush()

    def flush(self) -> None:
        if self._lines:
            name = f"part-{self.group:05d}-{self.files:03d}.jsonl"
            storage.write_bytes(storage.join(self.folder, name), "".join(self._lines).encode())
            self.files += 1
            self._lines = []


def _count_rows(
    source: Source, rows: RawRows, splits: np.ndarray, counts: GroupCounts, tokens: _TokenCounts
) -> None:
    frame = rows.frame
    labels = frame[source.label].to_numpy()
    counts.rows += frame.height
    for split in range(len(SPLITS)):
        counts.split_rows[split] += int((splits == split).sum())
        counts.positives[split] += int(labels[splits == split].sum())
    for name in (*source.categorical, *source.numeric):
        counts.missing[name] = counts.missing.get(name, 0) + frame[name].null_count()
    training = frame.filter(pl.Series(splits == TRAIN))
    for name in source.numeric:
        values = training[name].drop_nulls().to_numpy()
        counts.sums[name] += ExactSums.of(transform(values))
    for name in source.categorical:
        tokens.add(name, training[name])


class _TokenCounts:
    """Counts per field and token, written to a file when they grow beyond a limit."""

    def __init__(self, source: Source, folder: str, group: int) -> None:
        self.fields = source.categorical
        self.folder = folder
        self.group = group
        self.parts = 0
        self._frames: dict[str, list[pl.DataFrame]] = {name: [] for name in self.fields}
        self._size = 0

    def add(self, name: str, values: pl.Series) -> None:
        counted = count_tokens(values)
        self._frames[name].append(counted)
        self._size += counted.height
        if self._size > SPILL_TOKENS:
            self._compact()
            if self._size > SPILL_TOKENS // 2:
                self.spill()

    def _compact(self) -> None:
        for name, frames in self._frames.items():
            if len(frames) > 1:
                self._frames[name] = [sum_counts(frames)]
        self._size = sum(frame.height for frames in self._frames.values() for frame in frames)

    def spill(self) -> None:
        """Write one row group per field, in the order of the fields."""
        if not self._size:
            return
        self._compact()
        sink = pa.BufferOutputStream()
        writer: pq.ParquetWriter | None = None
        for name in self.fields:
            frames = self._frames[name]
            table = (frames[0] if frames else self._empty()).to_arrow()
            if writer is None:
                writer = pq.ParquetWriter(sink, table.schema, compression="lz4")
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            self._frames[name] = []
        assert writer is not None
        writer.close()
        storage.write_bytes(part_path(self.folder, self.group, self.parts), sink.getvalue().to_pybytes())
        self.parts += 1
        self._size = 0

    def _empty(self) -> pl.DataFrame:
        some = next(frames[0] for frames in self._frames.values() if frames)
        return some.clear()


def count_tokens(values: pl.Series) -> pl.DataFrame:
    """Columns token and count (int64) of one column's values; null is a token."""
    return values.rename("token").to_frame().group_by("token").agg(pl.len().cast(pl.Int64).alias("count"))


def sum_counts(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Add up several frames of counts."""
    return pl.concat(frames).group_by("token").agg(pl.col("count").sum())
