"""From spooled counts to ids: one vocabulary per categorical field, of any size.

Id 0 is *unknown*: tokens counted fewer than ``threshold`` times in the training split, and tokens
that occur only elsewhere. A missing value is a token like any other, spelled as the empty text.
The others get ids from 1 by descending count, ties by token.

A field whose tokens do not fit in memory is cut into ranges of tokens, each counted by a task of
its own. How many tokens of each range have which count says where each range's ids begin, so that
the ids do not depend on how the tokens were cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.dataset.manifest import Shard
from data_prep.columns import numbers_of
from data_prep.spool import open_arrow

UNKNOWN = 0
MERGE_TOKENS = 250_000
MERGE_FRAMES = 16
RANGE_TOKENS = 16_000_000
SAMPLED_TOKENS = 1_000
CHUNK_IDS = 1 << 20


def vocabulary_path(field: str) -> str:
    """Where a field's vocabulary lies within a dataset directory."""
    return f"vocabulary/{field}.parquet"


@dataclass(frozen=True, kw_only=True)
class TokenRange:
    """The tokens from ``first`` (None: the least, the missing one included) to before ``end``."""

    first: Any = None
    end: Any = None

    def of(self, tokens: pl.Series) -> slice:
        """Where they lie among ascending tokens."""
        start = 0 if self.first is None else int(tokens.search_sorted(self.first, side="left"))
        stop = len(tokens) if self.end is None else int(tokens.search_sorted(self.end, side="left"))
        return slice(start, stop)


class TokenCounts:
    """Sum of many frames of tokens and counts, in memory bounded by the distinct tokens."""

    def __init__(self) -> None:
        self._waiting: list[pl.DataFrame] = []
        self._size = 0
        self._limit = MERGE_TOKENS

    def add(self, tokens: pl.Series, counts: pl.Series) -> None:
        """Add (V) tokens, which may repeat, and how often each occurs."""
        self._waiting.append(pl.DataFrame({"token": tokens, "count": counts.cast(pl.Int64)}))
        self._size += len(tokens)
        # However small a frame is, it keeps the file mapped from which it came.
        if self._size > self._limit or len(self._waiting) > MERGE_FRAMES:
            self._compact()
            self._limit = max(MERGE_TOKENS, 2 * self._size)

    def _compact(self) -> None:
        summed = pl.concat(self._waiting).group_by("token").agg(pl.col("count").sum())
        self._waiting, self._size = [summed], summed.height

    def at_least(self, threshold: int) -> pl.DataFrame:
        """The tokens that occur ``threshold`` times or more: token, count; ascending by token."""
        self._compact()
        return self._waiting[0].filter(pl.col("count") >= threshold).sort("token")


def cut_into_ranges(distinct: int, sampled: Iterable[pl.Series]) -> list[TokenRange]:
    """Ranges of tokens of about equal number, of which each fits in memory.

    Args:
        distinct: Sum over the parts of their distinct values: at least as many as there are.
        sampled: Ascending tokens of some parts.
    """
    n_ranges = -(-distinct // RANGE_TOKENS)
    few = [tokens.gather_every(max(1, len(tokens) // SAMPLED_TOKENS)) for tokens in sampled]
    tokens = pl.concat(few).drop_nulls().sort()
    if n_ranges <= 1 or tokens.is_empty():
        return [TokenRange()]
    quantiles = [len(tokens) * i // n_ranges for i in range(1, n_ranges)]
    bounds = tokens.gather(quantiles).unique().sort().to_list()
    return [
        TokenRange(first=first, end=end) for first, end in zip([None, *bounds], [*bounds, None], strict=True)
    ]


def count_histogram(counted: pl.DataFrame) -> list[list[int]]:
    """Each count that occurs and how many tokens have it, descending: [[count, tokens], …]."""
    histogram = counted.group_by("count").agg(pl.len().alias("tokens")).sort("count", descending=True)
    return [list(row) for row in histogram.iter_rows()]


def first_ids(histograms: Sequence[list[list[int]]]) -> list[dict[int, int]]:
    """For every range and count, the id of the first token of that range that has that count."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for count, tokens in histogram:
            total[count] = total.get(count, 0) + tokens
    next_id = {}
    start = 1
    for count in sorted(total, reverse=True):
        next_id[count] = start
        start += total[count]
    result = []
    for histogram in histograms:
        result.append({count: next_id[count] for count, _ in histogram})
        for count, tokens in histogram:
            next_id[count] += tokens
    return result


def assign_ids(counted: pl.DataFrame, first_id: Mapping[int, int]) -> pl.DataFrame:
    """Ids of the tokens of one range: id (int32), token, count; ascending by token.

    Args:
        counted: Token and count, ascending by token (``read_counts``).
        first_id: By count, where the ids of the range's tokens begin.
    """
    starts = pl.DataFrame(
        {"count": list(first_id), "start": list(first_id.values())},
        schema={"count": pl.Int64, "start": pl.Int64},
    )
    numbered = counted.with_columns(pl.int_range(pl.len()).over("count").alias("place"))
    joined = numbered.join(starts, on="count", how="left", maintain_order="left")
    return joined.select((pl.col("start") + pl.col("place")).cast(pl.Int32).alias("id"), "token", "count")


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A map from tokens to ids.

    Attributes:
        tokens: (V) ascending tokens without the missing one.
        ids: (V) int32.
        missing: Id of the missing value.
    """

    tokens: pl.Series
    ids: np.ndarray
    missing: int

    @classmethod
    def of(cls, ids: pl.DataFrame) -> Encoder:
        """From columns id and token, ascending by token."""
        missing = ids.filter(pl.col("token").is_null())
        known = ids.drop_nulls("token")
        return cls(
            tokens=known["token"],
            ids=known["id"].to_numpy(),
            missing=int(missing["id"][0]) if missing.height else UNKNOWN,
        )

    def encode(self, tokens: pl.Series) -> np.ndarray:
        """Ids (B) int32 of tokens (B); what is not in the vocabulary becomes 0."""
        ids = np.full(len(tokens), UNKNOWN, dtype=np.int32)
        if len(self.tokens) and self.tokens.dtype.is_numeric():
            known, wanted = self.tokens.to_numpy(), numbers_of(tokens)[0]
            place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            ids = np.where(known[place] == wanted, self.ids[place], ids)
        elif len(self.tokens):
            place = self.tokens.search_sorted(tokens).to_numpy()
            place = np.minimum(place, len(self.tokens) - 1).astype(np.int64)
            found = (self.tokens.gather(place) == tokens).fill_null(False).to_numpy()
            ids[found] = self.ids[place[found]]
        if tokens.null_count():
            ids[tokens.is_null().to_numpy()] = self.missing
        return ids


def write_counts(counted: pl.DataFrame, path: str) -> None:
    """Write the counts of a range."""
    _write_frame(counted, path)


def read_counts(path: str) -> pl.DataFrame:
    """The inverse of ``write_counts``."""
    with open_arrow(path) as reader:
        return pl.DataFrame(reader.read_all())


def write_ids(ids: pl.DataFrame, path: str) -> None:
    """Write a range's ids, ascending by id, for ``merge_ids``."""
    _write_frame(ids.sort("id"), path)


def _write_frame(frame: pl.DataFrame, path: str) -> None:
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    with storage.open_write(path) as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=CHUNK_IDS // 16)


def merge_ids(paths: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The ids of all ranges in order of id, a chunk at a time."""
    ranges = [_chunks(path) for path in paths]
    waiting = [next(chunks, None) for chunks in ranges]
    next_id = 1
    while any(frame is not None for frame in waiting):
        end = next_id + CHUNK_IDS
        taken = []
        for index, frame in enumerate(waiting):
            while frame is not None and frame["id"][0] < end:
                before = frame.filter(pl.col("id") < end)
                taken.append(before)
                frame = frame[before.height :] if before.height < frame.height else next(ranges[index], None)
            waiting[index] = frame
        yield pl.concat(taken).sort("id")
        next_id = end


def _chunks(path: str) -> Iterator[pl.DataFrame]:
    with open_arrow(path) as reader:
        for index in range(reader.num_record_batches):
            yield pl.DataFrame(reader.get_batch(index))


def write_vocabulary(
    field: str,
    dataset: str,
    chunks: Iterable[pl.DataFrame],
    text_of: Callable[[pl.Series], pl.Series],
    unknown_rows: int,
) -> Shard:
    """Write one field's vocabulary: id, token (text), count; unknown first.

    The counts add up to the training rows, so embedding statistics follow from them exactly.

    Args:
        field: Its name.
        dataset: The dataset directory.
        chunks: Id, token and count, ascending by id.
        text_of: From tokens to texts.
        unknown_rows: Training rows whose token has no id of its own.

    Returns:
        The file, as the manifest holds it.
    """
    path = vocabulary_path(field)
    location = storage.join(dataset, path)
    before = pl.DataFrame(
        {"id": [UNKNOWN], "token": [None], "count": [unknown_rows]},
        schema={"id": pl.Int32, "token": pl.String, "count": pl.Int64},
    )
    schema = before.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    rows = 0
    with (
        storage.open_write(location) as sink,
        pq.ParquetWriter(sink, schema, compression="zstd") as writer,
    ):
        # Row groups of the same rows, whether the ids come at once or merged from ranges.
        pieces = (piece for chunk in chunks for piece in chunk.iter_slices(CHUNK_IDS))
        for piece in chain(pieces, [None]):
            if piece is not None:
                before = pl.concat([before, piece.with_columns(text_of(piece["token"]).alias("token"))])
            # The unknown shares the first row group.
            if before.height:
                table = before.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
                writer.write_table(table, row_group_size=2 * CHUNK_IDS)
            rows += before.height
            before = before.clear()
    return Shard(path=path, rows=rows, bytes=storage.size(location), sha256=storage.file_sha256(location))
