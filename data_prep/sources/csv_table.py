"""A CSV file with a header: comma or tab separated, quotes as in RFC 4180; plain, gzip or zstd."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from afm_dist.errors import DataError
from data_prep.sources import files
from data_prep.sources.files import Lines
from data_prep.sources.source import RawField, RawRows, Rejected, check_field_names
from data_prep.sources.tabular_columns import Content
from data_prep.sources.tabular_rows import MISSING_NUMBERS, rows_of, text_of

SAMPLE_BYTES = 1 << 18
SAMPLE_ROWS = 20_000
BATCH_BYTES = 8 << 20
COMPRESSION_RATIO = 4
QUOTE = b'"'
DECIMAL = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
INTEGER = r"^\s*[+-]?\d+\s*$"
LONG_INTEGER = r"^\s*[+-]?\d{16,}\s*$"

InvalidRow = Any


class CsvTable:
    """One CSV file, read as bytes so that no value is interpreted before we look at it.

    Lines count as if none were inside quotes; row 0 stands on line 2.

    Args:
        path: The file, which has at least one row.

    Attributes:
        names: Columns, in order.
        contents: What each seems to hold.
        types: What the file says about each: nothing.
        spellings: Equal where equal values of two columns become equal tokens: always.

    Raises:
        DataError: it is not a table.
    """

    format = "CSV"
    first_line = 2

    def __init__(self, path: str) -> None:
        self.path = path
        self.bytes = files.describe(path).bytes
        self.compression = files.compression_of(path)
        sample = files.head(path, SAMPLE_BYTES)
        self.row_bytes = len(sample) / max(1, sample.count(b"\n"))
        header = sample.partition(b"\n")[0]
        self.delimiter = "\t" if header.count(b"\t") > header.count(b",") else ","
        self.names: list[str] = []
        with self._reader(lambda row: "skip", {}) as reader:
            self.names = list(reader.schema.names)
        check_field_names(self.names, path)
        self.types = self.spellings = dict.fromkeys(self.names, "text")
        # Again, now that the names are known: Arrow would make numbers of long identifiers.
        with self._reader(lambda row: "skip", {}) as reader:
            first = next((batch for batch in reader if batch.num_rows), None)
        sample_rows = pl.DataFrame(first.slice(0, SAMPLE_ROWS)) if first else pl.DataFrame()
        self.contents: dict[str, Content] = {
            name: content_of(text_of(sample_rows[name])) if first else "empty" for name in self.names
        }

    def ranges(self, block_bytes: int) -> list[tuple[int, int, int]]:
        """Byte ranges of a plain file; a whole compressed one."""
        if self.compression is not None:
            return [(0, self.bytes, max(1, round(self.bytes * COMPRESSION_RATIO / self.row_bytes)))]
        starts = range(0, self.bytes, block_bytes)
        ends = [min(self.bytes, start + block_bytes) for start in starts]
        return [
            (start, end, max(1, round((end - start) / self.row_bytes)))
            for start, end in zip(starts, ends, strict=True)
        ]

    def count_rows(self, start: int, end: int) -> int | None:
        """Lines of a byte range; None where there are quotes: a line may end inside of them."""
        rows = 0
        for lines in files.lines_of_range(self.path, start, end):
            if QUOTE in lines.text:
                return None
            rows += lines.count
        return rows - (start == 0)

    def read(
        self, start: int, end: int, first_row: int, label: str, fields: tuple[RawField, ...]
    ) -> Iterator[RawRows]:
        """The rows of a block."""
        whole = (start, end) == (0, self.bytes)
        pieces = self._batches() if whole else self._parsed_lines(start, end, first_row + self.first_line)
        for frame, lines, malformed in pieces:
            blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
            frame, lines = frame.filter(~blank), lines[~blank.to_numpy()]
            rows = rows_of(frame, label, fields, lines - self.first_line, self.first_line)
            yield rows.with_rejected(malformed)

    def _batches(self) -> Iterator[tuple[pl.DataFrame, np.ndarray, list[Rejected]]]:
        """The whole file, with the line of each row and the lines that are no rows."""
        malformed: dict[int, Rejected] = {}
        overlong: dict[int, Rejected] = {}

        def taken(before: float) -> list[Rejected]:
            return [bad.pop(line) for bad in (malformed, overlong) for line in sorted(bad) if line < before]

        line = self.first_line
        with self._reader(partial(self._keep, malformed, 0), overlong) as reader:
            for batch in reader:
                frame = pl.DataFrame(batch)
                lines = _lines_of_rows(line, frame.height, malformed)
                line = int(lines[-1]) + 1 if frame.height else line
                yield frame, lines, taken(line)
        if malformed or overlong:
            empty = pl.DataFrame(schema=dict.fromkeys(self.names, pl.Binary))
            yield empty, np.zeros(0, dtype=np.int64), taken(np.inf)

    def _parsed_lines(
        self, start: int, end: int, line: int
    ) -> Iterator[tuple[pl.DataFrame, np.ndarray, list[Rejected]]]:
        """The lines of a byte range of a file without quotes; ``line`` is the number of the first."""
        for lines in _joined(files.lines_of_range(self.path, start, end)):
            if start == 0:
                lines = lines.without_first(lines.text.find(b"\n") + 1)
                start = 1
            malformed: dict[int, Rejected] = {}
            overlong: dict[int, Rejected] = {}
            text = _without_overlong(lines, line, overlong)
            table = pa.table({name: pa.array([], pa.binary()) for name in self.names})
            if text:
                options = self._options(partial(self._keep, malformed, line - 1))
                options["read_options"].column_names = self.names
                options["read_options"].block_size = len(text) + 1
                try:
                    table = pa_csv.read_csv(pa.BufferReader(text), **options)
                except pa.ArrowInvalid as error:
                    raise self._unreadable(error) from error
            frame = pl.DataFrame(table)
            numbers = _lines_of_rows(line, frame.height, malformed)
            yield frame, numbers, [*malformed.values(), *overlong.values()]
            line += lines.count

    def _keep(self, malformed: dict[int, Rejected], offset: int, row: InvalidRow) -> str:
        number = row.number + offset
        reason = f"{row.actual_columns} fields instead of {row.expected_columns}"
        malformed[number] = Rejected(line=number, reason=reason, text=row.text[: files.MAX_REJECTED_BYTES])
        return "skip"

    def _options(self, malformed: Callable[[InvalidRow], str]) -> dict[str, Any]:
        return {
            "read_options": pa_csv.ReadOptions(use_threads=False, block_size=BATCH_BYTES),
            "parse_options": pa_csv.ParseOptions(
                delimiter=self.delimiter,
                newlines_in_values=True,
                ignore_empty_lines=False,
                invalid_row_handler=malformed,
            ),
            "convert_options": pa_csv.ConvertOptions(
                column_types=dict.fromkeys(self.names, pa.binary()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        }

    @contextmanager
    def _reader(self, malformed: Callable[[InvalidRow], str], overlong: dict[int, Rejected]) -> Iterator[Any]:
        """The whole file, batch by batch; overlong lines are noted, and empty."""
        if self.compression is None:
            lines = files.lines_of_range(self.path, 0, self.bytes)
        else:
            lines = files.lines_of_compressed(self.path, self.compression)
        try:
            with (
                _Stream(_texts(lines, overlong)) as stream,
                pa_csv.open_csv(stream, **self._options(malformed)) as reader,
            ):
                yield reader
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        message = str(error).splitlines()[0]
        if "straddling" in message:
            message = f"a row has more than {BATCH_BYTES:,} bytes; perhaps a quote is not closed"
        return DataError(f"{self.path}: cannot be read as CSV ({message})")


class _Stream(io.RawIOBase):
    """Pieces of text, one after the other, as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._waiting: list[bytes] = []

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """As many bytes as asked for, or all that are left: Arrow's batches are its reads."""
        waiting = sum(map(len, self._waiting))
        for piece in self._pieces:
            self._waiting.append(piece)
            waiting += len(piece)
            if 0 <= size <= waiting:
                break
        text = b"".join(self._waiting)
        end = len(text) if size < 0 else size
        self._waiting = [text[end:]]
        return text[:end]


def _texts(pieces: Iterator[Lines], overlong: dict[int, Rejected]) -> Iterator[bytes]:
    line = 1
    for lines in pieces:
        yield _without_overlong(lines, line, overlong)
        line += lines.count


def _lines_of_rows(first: int, rows: int, malformed: dict[int, Rejected]) -> np.ndarray:
    """(rows) line numbers from ``first`` on that are not malformed."""
    lines = np.arange(first, first + rows + len(malformed))
    return lines[~np.isin(lines, list(malformed))][:rows]


def _joined(pieces: Iterable[Lines]) -> Iterator[Lines]:
    """Larger pieces: parsing has a price per piece."""
    waiting: list[Lines] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(len(each.text) for each in waiting) >= BATCH_BYTES:
            yield Lines.concatenate(waiting)
            waiting = []
    if waiting:
        yield Lines.concatenate(waiting)


def _without_overlong(lines: Lines, first_line: int, overlong: dict[int, Rejected]) -> bytes:
    """The text with overlong lines emptied; an empty line is no row."""
    if not lines.overlong:
        return lines.text
    kept = lines.text.split(b"\n")
    for index in lines.overlong:
        overlong[first_line + index] = Rejected(
            line=first_line + index,
            reason=f"the line is longer than {files.MAX_LINE_BYTES} bytes",
            text=kept[index][: files.MAX_REJECTED_BYTES].decode("utf-8", errors="backslashreplace"),
        )
        kept[index] = b""
    return b"\n".join(kept)


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
