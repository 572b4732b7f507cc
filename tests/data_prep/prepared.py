"""What lies in a dataset directory, as plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from data_prep.permutation import Permutation
from data_prep.split import SPLITS
from data_prep.vocabulary import vocabulary_path
from tests.data_prep.raw_logs import Row

Entry = tuple[int, str | None, int]


def read_split(manifest: Manifest, split: str) -> dict[str, list[Any]]:
    """The columns of a split: the label, ids and numbers; its rows in the order of the log."""
    shards = manifest.splits.get(split, ())
    tables = [pq.read_table(storage.join(manifest.location, shard.path)) for shard in shards]
    if not tables:
        return {}
    table = pa.concat_tables(tables)
    return table.take(np.argsort(in_written_order(np.arange(len(table)), split, manifest))).to_pydict()


def in_written_order(rows: np.ndarray, split: str, manifest: Manifest) -> np.ndarray:
    """Something of each row of a split, in the order of the log, as it is in the shards."""
    if split != "train":
        return rows
    assert manifest.row_order == "shuffled"
    return rows[np.argsort(Permutation(n=len(rows), seed=manifest.seed)(np.arange(len(rows))))]


def read_vocabulary(manifest: Manifest, field: str) -> list[Entry]:
    """Id, token and count of a field's vocabulary."""
    table = pq.read_table(storage.join(manifest.location, vocabulary_path(field)))
    return list(zip(*(table[name].to_pylist() for name in ("id", "token", "count")), strict=True))


def decoded(manifest: Manifest, split: str) -> list[Row]:
    """The rows of a split, in the order of the log, with tokens in the place of ids (None: unknown)."""
    columns = read_split(manifest, split)
    for field in manifest.categorical:
        tokens = [token for _, token, _ in read_vocabulary(manifest, field.name)]
        if columns:
            columns[field.name] = [tokens[i] for i in columns[field.name]]
    return [list(row) for row in zip(*columns.values(), strict=True)]


def split_sizes(manifest: Manifest) -> dict[str, int]:
    """Rows per split."""
    return {name: sum(shard.rows for shard in manifest.splits[name]) for name in SPLITS}
