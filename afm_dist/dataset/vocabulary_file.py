"""A field's vocabulary read in bounded memory: opened, compared with the manifest, a batch at a time.

A vocabulary may have a billion rows. The checksum is left to those who open it: ``Manifest.check``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import ArrowException

from afm_dist import storage
from afm_dist.dataset.manifest import Field, Manifest, Shard
from afm_dist.errors import DataError, StorageError

COLUMNS = {"id": (pa.int32(),), "token": (pa.string(), pa.large_string()), "count": (pa.int64(),)}
BATCH_IDS = 1 << 17
BUFFER_BYTES = 1 << 20


class DamageError(Exception):
    """What is wrong with a vocabulary, in words; ``open_vocabulary`` says which it is."""


def vocabulary_of(manifest: Manifest, field: Field) -> Shard:
    """Find the file of a field's vocabulary.

    Raises:
        DataError: the manifest lists none.
    """
    file = manifest.vocabulary.get(field.name)
    if file is None:
        raise DataError(
            f"{manifest.location}: the manifest lists no vocabulary of field {field.name!r}; "
            "prepare the data again"
        )
    return file


@contextmanager
def open_vocabulary(manifest: Manifest, field: Field) -> Iterator[pq.ParquetFile]:
    """The vocabulary of a field; within it, what shows that the file is damaged is an error that names it.

    Raises:
        DataError: the vocabulary is missing, damaged, or of other columns or another size than the
            manifest promises.
    """
    file = vocabulary_of(manifest, field)
    location = storage.join(manifest.location, file.path)
    try:
        size = storage.size(location)
    except DataError as error:
        raise _damaged(location, "no such file") from error
    if size != file.bytes:
        raise _damaged(location, f"{size} bytes where the manifest promises {file.bytes}")
    try:
        # With a buffer, columns are read page by page instead of a row group at once.
        with (
            storage.open_read(location, BUFFER_BYTES) as source,
            pq.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet,
        ):
            _check_columns(parquet)
            yield parquet
    except StorageError:
        raise
    except (DamageError, ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(location, str(error)) from error


def _damaged(location: str, how: str) -> DataError:
    return DataError(f"{location}: damaged vocabulary ({how}); prepare the data again")


def _check_columns(parquet: pq.ParquetFile) -> None:
    types = dict(zip(parquet.schema_arrow.names, parquet.schema_arrow.types, strict=True))
    for name, expected in COLUMNS.items():
        if types.get(name) not in expected:
            raise DamageError(f"column {name!r} holds {types.get(name, 'nothing')}")


def counts_of(batch: pa.RecordBatch, first_id: int) -> NDArray[np.int64]:
    """The counts in a batch of the columns id and count, whose first id must be this one.

    Raises:
        DamageError: it is not, or the next ids do not follow, or something is missing.
    """
    if any(column.null_count for column in batch.columns):
        raise DamageError("an id or a count is missing")
    ids: NDArray[np.int32] = batch["id"].to_numpy()
    if not np.array_equal(ids, np.arange(first_id, first_id + len(ids))):
        raise DamageError("the ids are not 0, 1, 2, … in order")
    counts: NDArray[np.int64] = batch["count"].to_numpy()
    return counts


def read_count_range(manifest: Manifest, field: Field, start: int, stop: int) -> NDArray[np.int64]:
    """Return how often the ids from ``start`` up to and without ``stop`` occur in the training split.

    Only the row groups that hold them are read.

    Returns:
        Shape (stop − start,).

    Raises:
        DataError: the vocabulary is missing or damaged, or does not have these ids.
    """
    counts = np.empty(stop - start, dtype=np.int64)
    with open_vocabulary(manifest, field) as parquet:
        rows = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        if sum(rows) != field.cardinality:
            raise DamageError(f"{sum(rows)} ids, but the manifest has {field.cardinality}")
        firsts = np.cumsum([0, *rows])
        groups = [i for i in range(len(rows)) if firsts[i] < stop and firsts[i + 1] > start]
        next_id = int(firsts[groups[0]]) if groups else 0
        for batch in parquet.iter_batches(BATCH_IDS, row_groups=groups, columns=["id", "count"]):
            found = counts_of(batch, next_id)
            first, last = max(start, next_id), min(stop, next_id + len(found))
            if first < last:
                counts[first - start : last - start] = found[first - next_id : last - next_id]
            next_id += len(found)
        if start < stop and next_id < stop:
            raise DamageError(f"it ends at id {next_id}")
        if len(counts) and counts.min() < 0:
            raise DamageError("a count is negative")
    return counts
