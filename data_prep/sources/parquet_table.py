"""A Parquet file: its columns by type, its row groups by number."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.errors import DataError, StorageError
from data_prep.sources.forms import Example, Form
from data_prep.sources.source import RawRows, distinct_names
from data_prep.sources.tabular_columns import Content
from data_prep.sources.tabular_rows import Reading, rows_of

BATCH_ROWS = 1 << 16
BLOCK_ROWS = 1 << 16
BUFFER_BYTES = 1 << 20


class ParquetTable:
    """One Parquet file.

    Args:
        path: The file.
        wanted: The columns that will be read; None: all.

    Attributes:
        names: Columns, in order.
        contents: What each holds.
        types: The Arrow type of each.
        spellings: Equal where equal values of two columns become equal tokens.

    Raises:
        DataError: it is damaged.
    """

    format = "Parquet"
    first_line = 1
    # Types say what the columns hold.
    forms: Mapping[str, dict[Form, Example]] = MappingProxyType({})

    def __init__(self, path: str, wanted: Collection[str] | None = None) -> None:
        self.path = path
        with self._file() as file:
            self.names = distinct_names(file.schema_arrow.names, wanted, path)
            kinds = self._arrow_types = dict(zip(self.names, file.schema_arrow.types, strict=True))
            self.contents: dict[str, Content] = {name: content_of(kind) for name, kind in kinds.items()}
            self.types = {name: str(kind) for name, kind in kinds.items()}
            self.spellings = {name: spelling_of(kind) for name, kind in kinds.items()}
            self._read_as = {name: readable(kind) for name, kind in kinds.items()}
            metadata = file.metadata
            self.row_groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def type_of(self, name: str) -> pa.DataType:
        """What the values of a column that is carried along are; a dictionary's are what it holds.

        Views are written out: Arrow cannot put them in another order.
        """
        kind = self._arrow_types[name]
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_string_view(kind):
            return pa.large_string()
        return pa.large_binary() if pa.types.is_binary_view(kind) else kind

    def ranges(self, block_bytes: int) -> list[tuple[int, int, int]]:
        """Runs of row groups, small ones together: first, last (exclusive), rows."""
        result = []
        start = rows = 0
        for index, size in enumerate(self.row_groups):
            rows += size
            if rows >= BLOCK_ROWS or index == len(self.row_groups) - 1:
                result.append((start, index + 1, rows))
                start, rows = index + 1, 0
        return result

    def count_rows(self, start: int, end: int) -> int:
        """Rows of some row groups."""
        return sum(self.row_groups[start:end])

    def read(
        self,
        start: int,
        end: int,
        first_row: int,
        label: str | None,
        readings: Sequence[Reading],
        kept: Mapping[str, pa.DataType],
    ) -> Iterator[RawRows]:
        """The rows of some row groups; a row's line is its number counted from 1."""
        read = [*filter(None, [label]), *(reading.field.name for reading in readings)]
        wanted = list(dict.fromkeys([*read, *kept]))
        with self._file() as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=list(range(start, end)), columns=wanted):
                # What is no UTF-8 text or outside its dictionary is found here, instead of taken for sound.
                batch.validate(full=True)
                numbers = np.arange(first_row, first_row + batch.num_rows)
                carried = {name: batch.column(name).cast(kind) for name, kind in kept.items()}
                frame = self._frame({name: batch.column(name).cast(self._read_as[name]) for name in read})
                lines = numbers + self.first_line
                yield rows_of(frame, label, readings, numbers, lines, carried, self.path)
                first_row += batch.num_rows

    def _frame(self, batch: Mapping[str, pa.Array]) -> pl.DataFrame:
        """The columns as Polars holds them.

        Raises:
            DataError: it has no such type.
        """
        try:
            return pl.DataFrame(batch)
        except pl.exceptions.PolarsError as error:
            what = str(error).splitlines()[0]
            raise DataError(
                f"{self.path}: a column cannot be read ({what}); write it as another type"
            ) from error

    @contextmanager
    def _file(self) -> Iterator[pq.ParquetFile]:
        try:
            # Buffered, and not read ahead: otherwise a whole row group is held in memory.
            with (
                storage.open_read(self.path, BUFFER_BYTES) as raw,
                pq.ParquetFile(
                    raw,
                    buffer_size=BUFFER_BYTES,
                    pre_buffer=False,
                    # In nanoseconds, as such columns are read otherwise, the year 9999 becomes 1816.
                    coerce_int96_timestamp_unit="us",
                ) as file,
            ):
                yield file
        except StorageError:
            raise
        except pa.ArrowNotImplementedError as error:
            raise DataError(
                f"{self.path}: a column has a type that Arrow does not read ({error}); write it as another"
            ) from error
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            message = str(error).splitlines()[0]
            raise DataError(f"{self.path}: cannot be read as Parquet ({message}); fetch it again") from error


def content_of(kind: pa.DataType) -> Content:
    """What a column of this type holds; a type that is not listed here is not read."""
    if pa.types.is_dictionary(kind):
        return content_of(kind.value_type)
    if _is_integer(kind) or pa.types.is_boolean(kind):
        return "integers"
    if pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and not pa.types.is_decimal256(kind)):
        return "decimals"
    if pa.types.is_null(kind):
        return "empty"
    is_text = _is_text(kind) or any(
        is_kind(kind) for is_kind in (pa.types.is_date, pa.types.is_timestamp, pa.types.is_time)
    )
    return "text" if is_text else "not read"


def spelling_of(kind: pa.DataType) -> str:
    """A name that two types share when equal values of them become equal tokens."""
    if pa.types.is_dictionary(kind):
        return spelling_of(kind.value_type)
    if _is_integer(kind):
        return "integer"
    return "text" if _is_text(kind) else str(readable(kind))


def readable(kind: pa.DataType) -> pa.DataType:
    """The type as which Polars can read a column of another, value for value."""
    if pa.types.is_decimal256(kind) and kind.scale == 0:
        return pa.string()
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            pl.Series(pa.array([], kind)).dt.hour()
        except pl.exceptions.ComputeError:
            return pa.timestamp(kind.unit, "UTC")
    return kind


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0))


def is_string(kind: pa.DataType) -> bool:
    """Whether values of this type are text, in any of Arrow's layouts."""
    return any(
        is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _is_text(kind: pa.DataType) -> bool:
    return is_string(kind) or any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )
    )
