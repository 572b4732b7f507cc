"""From shards to tensors: checked, projected, shuffled, striped.

Shape legend: B batch, F categorical fields, C numeric fields.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import ArrowException
from torch import Tensor

from afm_dist import storage
from afm_dist.dataset.manifest import Field, Manifest, Shard
from afm_dist.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Some rows.

    Attributes:
        ids: Shape (B, F), int32, counted from 0 within each field.
        numeric: Shape (B, C), float32; missing values are 0, the field's mean.
        labels: Shape (B,), float32, 0 or 1.
    """

    ids: Tensor
    numeric: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        return Batch(self.ids[rows], self.numeric[rows], self.labels[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[Batch]) -> Batch:
        """All rows of several batches in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.numeric for part in parts]),
            torch.cat([part.labels for part in parts]),
        )


def read_shard(manifest: Manifest, shard: Shard) -> Batch:
    """All rows of one shard, its checksum and every id's range checked.

    Raises:
        DataError: the shard is missing, truncated, altered, lacks a column, or holds an id
            outside its field's table or a label other than 0 and 1.
    """
    location = storage.join(manifest.location, shard.path)
    content = _read_checked(location, shard)
    names = [manifest.label, *(field.name for field in manifest.fields)]
    try:
        table = pq.ParquetFile(io.BytesIO(content)).read(columns=names, use_threads=False)
        columns = {name: table.column(name) for name in names}
    except (ArrowException, KeyError) as error:
        raise DataError(f"{location}: not a shard of this dataset ({error})") from error

    ids = np.empty((table.num_rows, len(manifest.categorical)), dtype=np.int32)
    for i, field in enumerate(manifest.categorical):
        ids[:, i] = _checked_ids(columns[field.name], field, location)
    numeric = np.empty((table.num_rows, len(manifest.numeric)), dtype=np.float32)
    for i, field in enumerate(manifest.numeric):
        numeric[:, i] = columns[field.name].fill_null(0.0).to_numpy()
    labels = columns[manifest.label].to_numpy().astype(np.float32)
    if len(labels) and not np.isin(labels, (0.0, 1.0)).all():
        raise DataError(f"{location}: labels other than 0 and 1; prepare the data again")
    return Batch(torch.from_numpy(ids), torch.from_numpy(numeric), torch.from_numpy(labels))


def _read_checked(location: str, file: Shard) -> bytes:
    """The content of a file, as the manifest describes it."""
    content = storage.read_bytes(location)
    if len(content) != file.bytes or storage.sha256(content) != file.sha256:
        state = f"{len(content)} bytes" if len(content) != file.bytes else "altered content"
        raise DataError(
            f"{location}: {state} where the manifest promises {file.bytes} bytes with another checksum; "
            "the file is truncated or altered, prepare the data again"
        )
    return content


def _checked_ids(column: pa.ChunkedArray, field: Field, location: str) -> NDArray[np.integer]:
    """The ids of a field, every one a row of its table."""
    if not pa.types.is_integer(column.type) or column.null_count:
        what = f"{column.null_count} missing ids" if column.null_count else f"{column.type} instead of ids"
        raise DataError(f"{location}: field {field.name!r} holds {what}; prepare the data again")
    values: NDArray[np.integer] = column.to_numpy()
    if len(values) and not (values.min() >= 0 and values.max() < field.cardinality):
        outside = int(values.min() if values.min() < 0 else values.max())
        raise DataError(
            f"{location}: field {field.name!r} holds id {outside} outside its table of "
            f"{field.cardinality} rows; prepare the data again"
        )
    return values


def rebatch(parts: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """The same rows in batches of exactly ``batch_size``; only the last may be smaller."""
    waiting: list[Batch] = []
    rows = 0
    for part in parts:
        waiting.append(part)
        rows += len(part)
        if rows < batch_size:
            continue
        joined = Batch.concatenate(waiting)
        for start in range(0, rows - batch_size + 1, batch_size):
            yield joined[start : start + batch_size]
        waiting = [joined[rows - rows % batch_size :]]
        rows %= batch_size
    if rows:
        yield Batch.concatenate(waiting)


def read_batches(manifest: Manifest, shards: Sequence[Shard], batch_size: int) -> Iterator[Batch]:
    """Rows of some shards in order, in batches of a fixed size, one shard in memory at a time."""
    return rebatch((read_shard(manifest, shard) for shard in shards), batch_size)


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """The order in which training sees the rows: a function of seed, epoch and manifest.

    Shards are permuted, then the rows within each. Global batch s holds rows
    s·batch_size … (s+1)·batch_size − 1 of that order; worker r of w takes rows r, r+w, … of it,
    so all workers make the same number of steps and every row is seen exactly once.

    Attributes:
        batch_size: Rows of a global batch, over all workers.
        seed: Of the permutations.
        rank: r.
        world_size: w.
    """

    manifest: Manifest
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    split: str = "train"

    @property
    def steps(self) -> int:
        """Steps of an epoch: every row once, the last batch possibly smaller."""
        return -(-self.manifest.rows(self.split) // self.batch_size)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This worker's part of each global batch, from a step on; may be empty in the last."""
        skip = first_step * self.batch_size
        for batch in rebatch(self._from_row(epoch, skip), self.batch_size):
            yield batch[slice(self.rank, None, self.world_size)]

    def _from_row(self, epoch: int, skip: int) -> Iterator[Batch]:
        shards = self.manifest.shards(self.split)
        for index in np.random.default_rng([self.seed, epoch]).permutation(len(shards)):
            shard = shards[index]
            if skip >= shard.rows:
                skip -= shard.rows
                continue
            order = np.random.default_rng([self.seed, epoch, int(index)]).permutation(shard.rows)
            yield read_shard(self.manifest, shard)[torch.from_numpy(order[skip:])]
            skip = 0


def read_counts(manifest: Manifest) -> dict[str, Tensor]:
    """How often each id of each categorical field occurs in the training split, from the vocabulary.

    Returns:
        By field name: shape (cardinality,), int64.

    Raises:
        DataError: a vocabulary is missing, truncated, altered, or disagrees with the manifest.
    """
    counts = {}
    rows = manifest.rows("train")
    for field in manifest.categorical:
        file = manifest.vocabulary.get(field.name)
        path = file.path if file else f"vocabulary/{field.name}.parquet"
        location = storage.join(manifest.location, path)
        content = _read_checked(location, file) if file else storage.read_bytes(location)
        try:
            frame = pl.read_parquet(io.BytesIO(content), columns=["id", "count"])
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{location}: damaged vocabulary ({error}); prepare the data again") from error
        frame = frame.sort("id")
        ids, values = frame["id"].to_numpy(), frame["count"].to_numpy()
        if not np.array_equal(ids, np.arange(field.cardinality)) or int(values.sum()) != rows:
            raise DataError(
                f"{location}: {len(ids)} ids with {int(values.sum())} occurrences, but the manifest has "
                f"{field.cardinality} ids and {rows} training rows; prepare the data again"
            )
        counts[field.name] = torch.from_numpy(values.astype(np.int64))
    return counts
