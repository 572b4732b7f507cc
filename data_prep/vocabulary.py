"""Token counts of the training split to ids: threshold, order, and the table that encodes.

Id 0 is *unknown*: tokens counted fewer than ``threshold`` times in the training split, and tokens
that occur only elsewhere. A missing value is a token like any other, spelled as the empty text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from data_prep.counting import sum_counts
from data_prep.sources.source import Source

UNKNOWN = 0
MERGE_TOKENS = 8_000_000


def vocabulary_path(dataset: str, field: str) -> str:
    """Where a field's vocabulary lies in a dataset directory."""
    return storage.join(dataset, "vocabulary", f"{field}.parquet")


def merge_counts(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Sum of many frames of counts; memory is bounded by the distinct tokens of one field."""
    waiting: list[pl.DataFrame] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += part.height
        if size > MERGE_TOKENS and len(waiting) > 1:
            waiting = [sum_counts(waiting)]
            size = waiting[0].height
    return sum_counts(waiting)


def read_counts(paths: Iterable[str], field_index: int) -> Iterable[pl.DataFrame]:
    """One field's counts from every file of the first pass."""
    for path in paths:
        file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(path)))
        frame = pl.from_arrow(file.read_row_group(field_index))
        assert isinstance(frame, pl.DataFrame)
        yield frame


def assign_ids(counts: pl.DataFrame, threshold: int) -> pl.DataFrame:
    """Ids from 1 by descending count, ties by token; rarer tokens are left out.

    Args:
        counts: Columns token and count, one row per distinct token.
        threshold: Smallest count that earns an id of its own.

    Returns:
        Columns id (int32), token, count (int64), in order of id.
    """
    kept = counts.filter(pl.col("count") >= threshold)
    kept = kept.sort("count", "token", descending=[True, False], nulls_last=False)
    return kept.select(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("id"), "token", "count")


def with_unknown(ids: pl.DataFrame, text: pl.Series, training_rows: int) -> pl.DataFrame:
    """The vocabulary as it is stored: text tokens, and row 0 with the rows that map to it.

    The counts add up to the training rows, so embedding statistics follow from them exactly.
    """
    unknown = training_rows - int(ids["count"].sum())
    first = pl.DataFrame(
        {"id": [UNKNOWN], "token": [None], "count": [unknown]},
        schema={"id": pl.Int32, "token": pl.String, "count": pl.Int64},
    )
    return pl.concat([first, ids.with_columns(text.rename("token"))])


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One field's map from raw tokens to ids, sorted by token so that it can stay on disk.

    Attributes:
        tokens: (V) sorted raw tokens without the missing one.
        ids: (V) int32.
        missing: Id of the missing value.
    """

    tokens: pl.Series
    ids: np.ndarray
    missing: int

    def encode(self, tokens: pl.Series) -> np.ndarray:
        """Ids (B) int32 of raw tokens (B); what is not in the vocabulary becomes 0."""
        ids = np.full(len(tokens), UNKNOWN, dtype=np.int32)
        if len(self.tokens):
            place = self.tokens.search_sorted(tokens).to_numpy()
            place = np.minimum(place, len(self.tokens) - 1).astype(np.int64)
            known = (self.tokens.gather(place) == tokens).fill_null(False).to_numpy()
            ids[known] = self.ids[place[known]]
        ids[tokens.is_null().to_numpy()] = self.missing
        return ids

    @classmethod
    def of(cls, ids: pl.DataFrame) -> Encoder:
        """From columns id and token, in any order."""
        missing = ids.filter(pl.col("token").is_null())
        known = ids.drop_nulls("token").sort("token")
        return cls(
            tokens=known["token"],
            ids=known["id"].to_numpy(),
            missing=int(missing["id"][0]) if missing.height else UNKNOWN,
        )

    def save(self, path: str) -> None:
        """Write uncompressed Arrow, which a local reader maps instead of loading."""
        table = pl.DataFrame({"token": self.tokens, "id": self.ids}).to_arrow()
        table = table.replace_schema_metadata({"missing": str(self.missing)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        storage.write_bytes(path, sink.getvalue().to_pybytes())

    @classmethod
    def load(cls, path: str) -> Encoder:
        """Map (locally) or read the table."""
        if storage.is_local(path):
            source = pa.memory_map(str(storage.local_path(path)))
        else:
            source = pa.BufferReader(storage.read_bytes(path))
        table = pa.ipc.open_file(source).read_all()
        return cls(
            tokens=pl.Series("token", table.column("token")),
            ids=table.column("id").to_numpy(),
            missing=int(table.schema.metadata[b"missing"]),
        )


def build(
    source: Source,
    field: str,
    parts: Iterable[str],
    *,
    threshold: int,
    training_rows: int,
    dataset: str,
    encoder_path: str,
) -> int:
    """Write one field's vocabulary and encoder from the counts of the first pass.

    Returns:
        The field's cardinality, id 0 included.
    """
    counts = merge_counts(read_counts(parts, source.categorical.index(field)))
    ids = assign_ids(counts, threshold)
    Encoder.of(ids).save(encoder_path)
    table = with_unknown(ids, source.token_text(ids["token"]), training_rows).to_arrow(
        compat_level=pl.CompatLevel.oldest()
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 20)
    storage.write_bytes(vocabulary_path(dataset, field), sink.getvalue().to_pybytes())
    return ids.height + 1
