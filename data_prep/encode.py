"""Spooled rows to Parquet shards: in the order of the log, or, the training split, shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from afm_dist import storage
from afm_dist.dataset.manifest import Shard
from data_prep.columns import numbers_of
from data_prep.shards import Piece
from data_prep.shuffle import RowRun, Shuffle
from data_prep.split import SPLITS, TRAIN
from data_prep.spool import LABEL_COLUMN, open_codes, read_map
from data_prep.transforms import FieldRule
from data_prep.vocabulary import UNKNOWN

ROW_GROUP_ROWS = 1 << 16
FEW_VALUES = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What the encoding of every shard has in common.

    Attributes:
        label: Name of the label column.
        rules: How fields are made of columns.
        parts: The spooled parts, in order.
        small: Categorical fields of few tokens.
        maps: For each rule, the files that say what each distinct value of a part becomes.
        dataset: The dataset directory.
    """

    label: str
    rules: Sequence[FieldRule]
    parts: Sequence[str]
    small: Sequence[str]
    maps: Sequence[Sequence[str]]
    dataset: str

    def schema(self) -> pa.Schema:
        """The shards' Arrow schema: label, fields in order."""
        columns = [pa.field(self.label, pa.uint8(), nullable=False)]
        for rule in self.rules:
            is_id = rule.kind == "categorical"
            columns.append(pa.field(rule.name, pa.int32() if is_id else pa.float32(), nullable=not is_id))
        return pa.schema(columns)


def encode_shard(
    encoding: Encoding, split: int, index: int, pieces: Sequence[Piece]
) -> tuple[Shard, dict[str, int]]:
    """Write one shard of rows in the order of the log.

    Args:
        encoding: What to do.
        split: Index of the split.
        index: Number of the shard within it.
        pieces: The rows, in order.

    Returns:
        The shard, and per categorical field how many of its rows have id 0.
    """
    columns = _columns(encoding, split, pieces)
    unknown = {
        rule.name: int((column.to_numpy() == UNKNOWN).sum())
        for rule, column in zip(encoding.rules, columns[1:], strict=True)
        if rule.kind == "categorical"
    }
    return _write_shard(encoding, split, index, columns), unknown


def encode_run(encoding: Encoding, shuffle: Shuffle, run: RowRun) -> None:
    """Write one run of training rows, from which shards are gathered."""
    words, done = np.empty((run.rows, shuffle.words), dtype=np.int32), 0
    for piece in run.pieces:
        columns = _columns(encoding, TRAIN, [piece])
        some = words[done : done + len(columns[0])]
        done += len(some)
        for place, column in enumerate(columns, start=1):
            some[:, place] = _to_words(column)
    shuffle.write_run(run, words)


def gather_shards(
    encoding: Encoding, shuffle: Shuffle, index: int, runs: Sequence[tuple[str, int]]
) -> list[Shard]:
    """Write the shards of a bucket of the training split.

    Args:
        encoding: What to do.
        shuffle: Where each row goes.
        index: Of the bucket.
        runs: Path and rows of every run.

    Raises:
        DataError: a run is damaged.
    """
    bucket, types = shuffle.buckets[index], encoding.schema().types
    words, done, shards = shuffle.read_bucket(index, runs), 0, []
    for number, rows in enumerate(bucket.sizes, start=bucket.first_shard):
        some = words[done : done + rows]
        done += rows
        columns = [_from_words(some[:, place], kind) for place, kind in enumerate(types, start=1)]
        shards.append(_write_shard(encoding, TRAIN, number, columns))
    return shards


def _columns(encoding: Encoding, split: int, pieces: Sequence[Piece]) -> list[pa.Array]:
    """Some rows: the label, and the fields in order."""
    rows = [_codes(encoding.parts[piece.part], split, piece) for piece in pieces]
    columns = [pa.array(np.concatenate([codes[LABEL_COLUMN] for codes in rows]))]
    for rule, maps in zip(encoding.rules, encoding.maps, strict=True):
        made = read_map(maps, [piece.part for piece in pieces])
        codes = [each[rule.column] for each in rows]
        if rule.kind == "categorical":
            ids = [each.to_numpy()[code] for each, code in zip(made, codes, strict=True)]
            columns.append(pa.array(np.concatenate(ids)))
        else:
            columns.append(gather_numbers(made, codes))
    return columns


def _write_shard(encoding: Encoding, split: int, index: int, columns: Sequence[pa.Array]) -> Shard:
    """Write one shard of the label and the fields in order."""
    numeric = [
        rule.name
        for rule, column in zip(encoding.rules, columns[1:], strict=True)
        if rule.kind == "numeric" and _has_few_values(column)
    ]
    table = pa.Table.from_arrays(list(columns), schema=encoding.schema())
    data = shard_bytes(table, [encoding.label, *encoding.small, *numeric])
    path = f"{SPLITS[split]}/part-{index:05d}.parquet"
    storage.write_bytes(storage.join(encoding.dataset, path), data)
    return Shard(path=path, rows=table.num_rows, bytes=len(data), sha256=storage.sha256(data))


def _to_words(column: pa.Array) -> NDArray[np.int32]:
    """(B) 4 bytes for each value: a missing number, as all others are finite, as NaN."""
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values.view(np.int32) if values.dtype == np.float32 else values.astype(np.int32)


def _from_words(words: NDArray[np.int32], kind: pa.DataType) -> pa.Array:
    """The inverse of ``_to_words``."""
    if kind != pa.float32():
        return pa.array(words.astype(kind.to_pandas_dtype()))
    numbers = np.ascontiguousarray(words).view(np.float32)
    missing = np.isnan(numbers)
    return pa.array(numbers, mask=missing if missing.any() else None)


def _codes(part: str, split: int, piece: Piece) -> dict[str, np.ndarray]:
    """By column, the codes of a piece's rows: copies, so that a shard of many parts holds no file open."""
    with open_codes(part, split) as batch:
        rows = batch.slice(piece.start, piece.stop - piece.start)
        return {name: rows.column(name).to_numpy().copy() for name in rows.schema.names}


def _has_few_values(column: pa.Array) -> bool:
    """Whether each value of (B) occurs four times or more, on average over the first rows.

    Asked of the shard's rows, not of the spooled parts: a shard is the same bytes for every cut of
    the input.
    """
    first = column.slice(0, 4 * FEW_VALUES)
    return 4 * len(first.unique()) <= len(first)


def gather_numbers(made: Sequence[pa.Array], codes: Sequence[np.ndarray]) -> pa.Array:
    """A numeric column.

    Args:
        made: Of each piece, the float32 that its distinct values became.
        codes: Of each piece, which of them each row holds.

    Returns:
        (B) float32, null where missing.
    """
    pieces = list(zip(made, codes, strict=True))
    values = np.concatenate([numbers_of(pl.Series(each))[0][code] for each, code in pieces])
    if not any(each.null_count for each in made):
        return pa.array(values)
    missing = [each.is_null().to_numpy(zero_copy_only=False)[code] for each, code in pieces]
    return pa.array(values, mask=np.concatenate(missing))


def shard_bytes(table: pa.Table, small: Sequence[str]) -> memoryview:
    """A shard's content.

    Args:
        table: The rows.
        small: Columns of few distinct values, for which a dictionary pays: it makes them smaller
            and faster to read. Compression on top costs more time than the bytes are worth.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="none",
        use_dictionary=list(small),
        write_statistics=False,
        row_group_size=ROW_GROUP_ROWS,
    )
    return memoryview(sink.getvalue())
