"""Spooled rows to Parquet shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.dataset.manifest import Shard
from data_prep.columns import numbers_of
from data_prep.shards import Piece
from data_prep.split import SPLITS
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
    """Write one shard.

    Args:
        encoding: What to do.
        split: Index of the split.
        index: Number of the shard within it.
        pieces: The rows, in order.

    Returns:
        The shard, and per categorical field how many of its rows have id 0.
    """
    rows = [_codes(encoding.parts[piece.part], split, piece) for piece in pieces]
    columns = [pa.array(np.concatenate([codes[LABEL_COLUMN] for codes in rows]))]
    unknown, small = {}, [encoding.label, *encoding.small]
    for rule, maps in zip(encoding.rules, encoding.maps, strict=True):
        made = read_map(maps, [piece.part for piece in pieces])
        codes = [each[rule.column] for each in rows]
        if rule.kind == "categorical":
            ids = np.concatenate([each.to_numpy()[code] for each, code in zip(made, codes, strict=True)])
            unknown[rule.name] = int((ids == UNKNOWN).sum())
            columns.append(pa.array(ids))
        else:
            columns.append(gather_numbers(made, codes))
            if _has_few_values(columns[-1]):
                small.append(rule.name)
    table = pa.Table.from_arrays(columns, schema=encoding.schema())
    data = shard_bytes(table, small)
    path = f"{SPLITS[split]}/part-{index:05d}.parquet"
    storage.write_bytes(storage.join(encoding.dataset, path), data)
    return Shard(path=path, rows=table.num_rows, bytes=len(data), sha256=storage.sha256(data)), unknown


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
