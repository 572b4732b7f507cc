"""One shard, checked and decoded a row group at a time.

Shape legend: B rows, F categorical fields, C numeric fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import ArrowException

from afm_dist import storage
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Field, Manifest, Shard
from afm_dist.errors import DataError

LABEL_TYPE = pa.uint8()
FIELD_TYPES = {"categorical": pa.int32(), "numeric": pa.float32()}


@dataclass(frozen=True)
class Columns:
    """Rows column by column, as Parquet holds them; a slice is a batch.

    Turning only the rows of a batch into row-major tensors keeps them in the processor's cache.

    Attributes:
        ids: Shape (F, B), int32.
        numeric: Shape (C, B), float32.
        labels: Shape (B,), uint8.
    """

    ids: NDArray[np.int32]
    numeric: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(
            torch.from_numpy(self.ids[:, rows].T.copy()),
            torch.from_numpy(self.numeric[:, rows].T.copy()),
            torch.from_numpy(self.labels[rows].astype(np.float32)),
        )

    def between(self, start: int, stop: int) -> Columns:
        """Slice the rows, without a copy."""
        return Columns(self.ids[:, start:stop], self.numeric[:, start:stop], self.labels[start:stop])

    def write(self, to: Batch) -> None:
        """Put all rows into the tensors of a batch of as many."""
        to.ids.numpy()[:] = self.ids.T
        to.numeric.numpy()[:] = self.numeric.T
        to.labels.numpy()[:] = self.labels


class OpenShard:
    """A shard whose checksum and columns are verified. Holds the file's content in memory.

    Attributes:
        group_rows: Rows of each row group.

    Raises:
        DataError: the shard is missing, truncated or altered, lacks a column, has one of another
            type, or has other rows than the manifest says.
    """

    def __init__(self, manifest: Manifest, shard: Shard) -> None:
        self._manifest = manifest
        self._location = storage.join(manifest.location, shard.path)
        self._types = {manifest.label: LABEL_TYPE}
        self._types |= {field.name: FIELD_TYPES[field.kind] for field in manifest.fields}
        content = manifest.read(shard)
        try:
            self._file = pq.ParquetFile(pa.BufferReader(content))
        except (ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        metadata = self._file.metadata
        self.group_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if metadata.num_rows != shard.rows:
            raise self._wrong(f"{metadata.num_rows} rows where the manifest promises {shard.rows}")
        self._check_types()

    def read_group(self, index: int) -> Columns:
        """All rows of one row group, every id's range and every label checked.

        Raises:
            DataError: an id is missing or outside its field's table, or a label is not 0 or 1.
        """
        try:
            table = self._file.read_row_group(index, columns=list(self._types), use_threads=False)
        except (ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        ids = np.empty((len(self._manifest.categorical), table.num_rows), dtype=np.int32)
        for row, field in zip(ids, self._manifest.categorical, strict=True):
            row[:] = self._ids(table.column(field.name), field)
        numeric = np.empty((len(self._manifest.numeric), table.num_rows), dtype=np.float32)
        for row, field in zip(numeric, self._manifest.numeric, strict=True):
            write_numbers(table.column(field.name), row)
        labels = table.column(self._manifest.label)
        if labels.null_count or labels.to_numpy().max(initial=0) > 1:
            raise self._wrong("labels other than 0 and 1")
        return Columns(ids, numeric, labels.to_numpy())

    def _check_types(self) -> None:
        schema = self._file.schema_arrow
        for name, expected in self._types.items():
            if schema.get_field_index(name) < 0:
                raise self._wrong(f"no column {name!r}")
            if schema.field(name).type != expected:
                raise self._wrong(f"column {name!r} holds {schema.field(name).type} instead of {expected}")

    def _ids(self, column: pa.ChunkedArray, field: Field) -> NDArray[np.int32]:
        """Return the ids of a field, every one a row of its table."""
        if column.null_count:
            raise self._wrong(f"field {field.name!r} holds {column.null_count} missing ids")
        ids: NDArray[np.int32] = column.to_numpy()
        # As unsigned numbers negative ids are the largest.
        if ids.view(np.uint32).max(initial=0) >= field.cardinality:
            outside = int(ids.min() if ids.min() < 0 else ids.max())
            raise self._wrong(
                f"field {field.name!r} holds id {outside} outside its table of {field.cardinality} rows"
            )
        return ids

    def _wrong(self, what: str) -> DataError:
        return DataError(f"{self._location}: {what}; prepare the data again")

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self._location}: not a shard of this dataset ({error})")


def write_numbers(column: pa.ChunkedArray, to: NDArray[np.float32]) -> None:
    """Return a numeric column with 0 for null; five times faster than by ``fill_null``."""
    start = 0
    for chunk in column.chunks:
        part = to[start : start + len(chunk)]
        start += len(chunk)
        if not chunk.null_count:
            part[:] = chunk.to_numpy()
            continue
        validity, values = chunk.buffers()
        rows = slice(chunk.offset, chunk.offset + len(chunk))
        present = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little", count=rows.stop)
        # Whatever bits lie under a null, times 0 they are those of 0.0: of a NaN too, as integers.
        np.multiply(np.frombuffer(values, np.uint32)[rows], present[rows], out=part.view(np.uint32))
