"""A CSV file with a header: comma or tab separated, plain or gzip, quotes as in RFC 4180."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from afm_dist.errors import DataError
from data_prep.sources import files
from data_prep.sources.source import RawField, RawRows, Rejected, check_field_names
from data_prep.sources.tabular_columns import Content
from data_prep.sources.tabular_rows import MISSING_NUMBERS, rows_of, text_of

SAMPLE_BYTES = 1 << 18
SAMPLE_ROWS = 20_000
BATCH_BYTES = 8 << 20
GZIP_RATIO = 4
FIRST_LINE = 2
DECIMAL = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
INTEGER = r"^\s*[+-]?\d+\s*$"
LONG_INTEGER = r"^\s*[+-]?\d{16,}\s*$"

InvalidRow = Any


class CsvTable:
    """One CSV file, read as bytes so that no value is interpreted before we look at it.

    Args:
        path: The file.

    Attributes:
        names: Columns, in order.

    Raises:
        DataError: it is not a table, or holds a header only.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.bytes = files.describe(path).bytes
        self.gzip = files.is_gzip(path)
        sample = files.head(path, SAMPLE_BYTES)
        self.row_bytes = len(sample) / max(1, sample.count(b"\n"))
        header = sample.partition(b"\n")[0]
        self.delimiter = "\t" if header.count(b"\t") > header.count(b",") else ","
        self.names: list[str] = []
        with self._reader(lambda row: "skip") as reader:
            self.names = list(reader.schema.names)
        check_field_names(self.names, path)
        malformed = 0

        def count(row: InvalidRow) -> str:
            nonlocal malformed
            malformed += 1
            return "skip"

        with self._reader(count) as reader:
            first = next((batch for batch in reader if batch.num_rows), None)
        if first is None and not malformed:
            raise DataError(f"{path}: the file has a header and no rows")
        sample_rows = pl.DataFrame(first.slice(0, SAMPLE_ROWS)) if first else pl.DataFrame()
        self.contents: dict[str, Content] = {
            name: content_of(text_of(sample_rows[name])) if first else "empty" for name in self.names
        }

    def ranges(self) -> list[tuple[int, int, int]]:
        """One block, because a line end inside quotes cannot be told from one outside."""
        rows = self.bytes * (GZIP_RATIO if self.gzip else 1) / self.row_bytes
        return [(0, self.bytes, max(1, round(rows)))]

    def read(
        self, start: int, end: int, first_row: int, label: str, fields: tuple[RawField, ...]
    ) -> Iterator[RawRows]:
        """All rows of the file; row 0 stands on line 2 (lines count as if none were inside quotes)."""
        malformed: dict[int, Rejected] = {}

        def keep(row: InvalidRow) -> str:
            reason = f"{row.actual_columns} fields instead of {row.expected_columns}"
            malformed[row.number] = Rejected(line=row.number, reason=reason, text=row.text)
            return "skip"

        def malformed_before(line: float) -> list[Rejected]:
            return [malformed.pop(number) for number in sorted(malformed) if number < line]

        line = FIRST_LINE
        rows = None
        with self._reader(keep) as reader:
            for batch in reader:
                frame = pl.DataFrame(batch)
                lines = np.arange(line, line + frame.height + len(malformed))
                lines = lines[~np.isin(lines, list(malformed))][: frame.height]
                line = int(lines[-1]) + 1 if frame.height else line
                blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
                frame, lines = frame.filter(~blank), lines[~blank.to_numpy()]
                rows = rows_of(frame, label, fields, lines - FIRST_LINE, lambda number: number + FIRST_LINE)
                yield rows.with_rejected(malformed_before(line))
        if malformed:
            empty = pl.DataFrame(schema=dict.fromkeys(self.names, pl.Binary))
            rows = rows_of(empty, label, fields, np.zeros(0, dtype=np.int64), int)
            yield rows.with_rejected(malformed_before(np.inf))

    @contextmanager
    def _reader(self, malformed: Callable[[InvalidRow], str]) -> Iterator[Any]:
        try:
            with (
                files.open_stream(self.path, gzip=self.gzip) as stream,
                pa_csv.open_csv(
                    stream,
                    read_options=pa_csv.ReadOptions(use_threads=False, block_size=BATCH_BYTES),
                    parse_options=pa_csv.ParseOptions(
                        delimiter=self.delimiter,
                        newlines_in_values=True,
                        ignore_empty_lines=False,
                        invalid_row_handler=malformed,
                    ),
                    convert_options=pa_csv.ConvertOptions(
                        column_types=dict.fromkeys(self.names, pa.binary()),
                        strings_can_be_null=True,
                        null_values=[""],
                    ),
                ) as reader,
            ):
                yield reader
        except (pa.ArrowInvalid, OSError) as error:
            message = str(error).splitlines()[0]
            if self.gzip and "runcated" in message:
                raise DataError(f"{self.path}: the gzip file is truncated; fetch it again") from error
            raise DataError(f"{self.path}: cannot be read as CSV ({message})") from error


def content_of(text: pl.Series) -> Content:
    """What the values of a column look like."""
    if text.drop_nulls().is_empty():
        return "empty"
    values = text.filter(text.is_not_null() & ~text.is_in(MISSING_NUMBERS))
    if values.is_empty():
        return "text"
    if values.str.contains(INTEGER).all():
        return "integers" if len(values) == text.count() else "text"
    # A float holds 15 digits: a longer integer, even among decimals, is an identifier.
    if values.str.contains(LONG_INTEGER).any():
        return "long integers"
    return "decimals" if values.str.contains(DECIMAL).all() else "text"
