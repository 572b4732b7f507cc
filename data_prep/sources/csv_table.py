"""A CSV file with a header: comma or tab separated, quotes as in RFC 4180; plain, gzip or zstd."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from afm_dist.errors import DataError
from data_prep.columns import Column
from data_prep.sources import files
from data_prep.sources.csv_lines import (
    ScannedLines,
    ends_in_values,
    header_and_rest,
    line_ends,
    lone_returns,
    original,
)
from data_prep.sources.files import QUOTE, Lines
from data_prep.sources.forms import ColumnForms, Example, Form, text_of
from data_prep.sources.source import RawRows, Rejected, distinct_names
from data_prep.sources.tabular_columns import Content
from data_prep.sources.tabular_rows import Reading, forms_among, rows_of

SAMPLE_BYTES = 1 << 18
SAMPLE_ROWS = 20_000
BATCH_BYTES = 8 << 20
COMPRESSION_RATIO = 4

InvalidRow = Any


@dataclass(frozen=True, kw_only=True)
class _Malformed:
    """A row with too few or too many fields, and how many lines end inside of it."""

    reason: str
    text: str
    line_ends: int

    def rejected(self, line: int) -> Rejected:
        return Rejected(line=line, reason=self.reason, text=self.text)


@dataclass(frozen=True)
class _Piece:
    """Some parsed rows: B of them, and the rejected ones.

    Attributes:
        frame: (B) raw values.
        numbers: (B) row numbers.
        lines: (B) numbers of the lines where the rows begin.
        rejected: The lines that are no rows.
    """

    frame: pl.DataFrame
    numbers: np.ndarray
    lines: np.ndarray
    rejected: list[Rejected]

    def without(self, empty: set[int]) -> _Piece:
        """Without the rows that Arrow makes of empty lines; those lines are taken out of ``empty``."""
        blank = self.frame.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy()
        if not blank.any():
            return self
        gone = empty.intersection(self.lines[blank].tolist())
        empty -= gone
        return self.filter(~np.isin(self.lines, list(gone)))

    def filter(self, kept: np.ndarray) -> _Piece:
        """The rows where ``kept`` (B) is true."""
        if kept.all():
            return self
        return replace(
            self, frame=self.frame.filter(pl.Series(kept)), numbers=self.numbers[kept], lines=self.lines[kept]
        )


class CsvTable:
    """One CSV file, read as bytes so that no value is interpreted before we look at it.

    Args:
        path: The file, which has at least one row.
        wanted: The columns that will be read; None: all.

    Attributes:
        names: Columns, in order.
        forms: How the first values of each are written.
        contents: What each seems to hold.
        types: What the file says about each: nothing.
        spellings: Equal where equal values of two columns become equal tokens: always.

    Raises:
        DataError: it is not a table.
    """

    format = "CSV"
    first_line = 2

    def __init__(self, path: str, wanted: Collection[str] | None = None) -> None:
        self.path = path
        self.bytes = files.describe(path).bytes
        self.compression = files.compression_of(path)
        sample = files.head(path, SAMPLE_BYTES)
        self.row_bytes = len(sample) / max(1, line_ends(sample))
        header = header_and_rest(sample)[0]
        if b"\0" in header:
            raise DataError(f"{path}:1: the header holds a NUL byte, so this is no CSV text; export it again")
        self.delimiter = "\t" if header.count(b"\t") > header.count(b",") else ","
        self.names: list[str] = []
        seen = ScannedLines(line=1)
        with self._reader(lambda row: "skip", seen) as reader:
            names = reader.schema.names
        if 1 in seen.overlong:
            raise DataError(
                f"{path}:1: the header is longer than {files.MAX_LINE_BYTES} bytes; does each line end in LF?"
            )
        if seen.undecodable and any("\0" in name for name in names):
            raise DataError(f"{path}: cannot be read as CSV (the header is not UTF-8 text)")
        self.names = distinct_names(names, wanted, path)
        self.types = self.spellings = dict.fromkeys(self.names, "text")
        # Again, now that the names are known: Arrow would make numbers of long identifiers.
        first = next((piece for piece in self._batches() if len(piece.numbers)), None)
        self.forms: dict[str, dict[Form, Example]] = {name: {} for name in self.names}
        if first is not None:
            lines = first.lines[:SAMPLE_ROWS]
            for name in self.names:
                self.forms[name] = forms_among(Column.of(first.frame[name][:SAMPLE_ROWS]), lines, path)
        self.contents = {name: content_of(forms) for name, forms in self.forms.items()}

    def type_of(self, name: str) -> pa.DataType:
        """What the values of a column that is carried along are: text."""
        return pa.string()

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
        """Lines of a byte range; None where rows may begin and end elsewhere than lines.

        A line may end inside quotes, and a row at a CR alone.
        """
        rows = 0
        for lines in files.lines_of_range(self.path, start, end):
            if QUOTE in lines.text or lone_returns(lines.text):
                return None
            rows += lines.count
        return rows - (start == 0)

    def read(
        self,
        start: int,
        end: int,
        first_row: int,
        label: str | None,
        readings: Sequence[Reading],
        kept: Mapping[str, pa.DataType],
    ) -> Iterator[RawRows]:
        """The rows of a block; an empty line is none."""
        whole = (start, end) == (0, self.bytes)
        pieces = self._batches() if whole else self._parsed_lines(start, end, first_row)
        for piece in pieces:
            carried = {name: _text_array(piece.frame[name]) for name in kept}
            rows = rows_of(piece.frame, label, readings, piece.numbers, piece.lines, carried, self.path)
            yield rows.with_rejected(piece.rejected)

    def _batches(self) -> Iterator[_Piece]:
        """The whole file.

        Raises:
            DataError: a quote is still open at its end.
        """
        malformed: dict[int, _Malformed] = {}
        seen = ScannedLines(line=1)
        row = 0
        line = self.first_line + sum(line_ends(name.encode()) for name in self.names)
        last_line, empty_row = line, -1
        with self._reader(partial(_keep, malformed, self.first_line), seen) as reader:
            for batch in reader:
                numbers = _numbers_of_rows(row, batch.num_rows, malformed)
                n_rows = int(numbers[-1]) + 1 - row if batch.num_rows else 0
                while row + n_rows in malformed:
                    n_rows += 1
                of_batch = {
                    number: malformed.pop(number) for number in sorted(malformed) if number < row + n_rows
                }
                ends = np.ones(n_rows, dtype=np.int64)
                if seen.quoted:
                    ends[numbers - row] += ends_in_values(batch)
                    for number, broken in of_batch.items():
                        ends[number - row] += broken.line_ends
                starts = line + np.cumsum(ends) - ends
                rejected = {
                    number: of_batch[number].rejected(int(starts[number - row])) for number in of_batch
                }
                if n_rows:
                    last_line = int(starts[-1])
                if batch.num_rows and not any(column[-1].is_valid for column in batch.columns):
                    empty_row = int(numbers[-1])
                row, line = row + n_rows, line + int(ends.sum())
                of_rows = starts[numbers - (row - n_rows)]
                for index, bad in seen.take_overlong(starts, line).items():
                    rejected[row - n_rows + index] = bad
                piece = _Piece(self._frame(batch, seen), numbers, of_rows, list(rejected.values()))
                yield piece.filter(~np.isin(numbers, list(rejected))).without(seen.empty)
        # Where the empty line after the last is no row, a quote swallowed it.
        if empty_row != row + len(malformed) - 1:
            for number in sorted(malformed):
                last_line, line = line, line + 1 + malformed[number].line_ends
            raise DataError(
                f"{self.path}:{last_line}: a quote in the row that begins here is not closed, so that the "
                'rest of the file became one value; close it, or write it twice ("") within a quoted value'
            )

    def _parsed_lines(self, start: int, end: int, row: int) -> Iterator[_Piece]:
        """The lines of a byte range of a file where each is a row; ``row`` is the first's number."""
        for lines in _joined(files.lines_of_range(self.path, start, end)):
            if start == 0:
                lines = lines.without_first(lines.text.find(b"\n") + 1)
                start = 1
            malformed: dict[int, _Malformed] = {}
            seen = ScannedLines(line=row + self.first_line)
            text = b"".join(seen.texts([lines]))
            table = pa.table({name: pa.array([], pa.binary()) for name in self.names})
            if text:
                options = self._options(partial(_keep, malformed, 1 - row))
                options["read_options"].column_names = self.names
                options["read_options"].block_size = len(text) + 1
                try:
                    table = pa_csv.read_csv(pa.BufferReader(text), **options)
                except pa.ArrowInvalid as error:
                    raise self._unreadable(error) from error
            numbers = _numbers_of_rows(row, table.num_rows, malformed)
            rejected = [bad.rejected(number + self.first_line) for number, bad in malformed.items()]
            rejected += seen.overlong.values()
            piece = _Piece(self._frame(table, seen), numbers, numbers + self.first_line, rejected)
            yield piece.without(seen.empty)
            row += lines.count

    def _frame(self, batch: pa.Table | pa.RecordBatch, seen: ScannedLines) -> pl.DataFrame:
        frame = pl.DataFrame(batch.rename_columns(self.names))
        return frame.select(_restored(column) for column in frame) if seen.undecodable else frame

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
    def _reader(self, malformed: Callable[[InvalidRow], str], seen: ScannedLines) -> Iterator[Any]:
        """The whole file, batch by batch."""
        if self.compression is None:
            lines = files.lines_of_range(self.path, 0, self.bytes)
        else:
            lines = files.lines_of_compressed(self.path, self.compression)
        try:
            with (
                _Stream(seen.whole(lines)) as stream,
                pa_csv.open_csv(stream, **self._options(malformed)) as reader,
            ):
                yield reader
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        message = str(error).splitlines()[0]
        if "Empty CSV" in message:
            message = "the header does not end; perhaps a quote is not closed"
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


def _keep(malformed: dict[int, _Malformed], first: int, row: InvalidRow) -> str:
    """Note a malformed row; ``first`` is what Arrow calls row 0."""
    text = original(row.text.encode()).decode(errors="backslashreplace")
    malformed[row.number - first] = _Malformed(
        reason=f"{row.actual_columns} fields instead of {row.expected_columns}",
        text=text[: files.MAX_REJECTED_BYTES],
        line_ends=line_ends(row.text.encode()),
    )
    return "skip"


def _numbers_of_rows(first: int, rows: int, malformed: Collection[int]) -> np.ndarray:
    """(rows) numbers from ``first`` on that are not of malformed rows."""
    numbers = np.arange(first, first + rows + len(malformed))
    return numbers[~np.isin(numbers, list(malformed))][:rows]


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


def _restored(column: pl.Series) -> pl.Series:
    """The values as they stand in the file, where some bytes are not UTF-8."""
    if column.is_null().all() or not column.bin.contains(b"\0").any():
        return column
    values = [value and original(value) for value in column]
    return pl.Series(column.name, values, dtype=pl.Binary)


def _text_array(values: pl.Series) -> pa.Array:
    return text_of(values).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())


def content_of(forms: ColumnForms) -> Content:
    """What a column holds whose values have these forms."""
    present = forms.keys() - {"blank"}
    if not present:
        return "empty"
    if "text" in present or present == {"missing"}:
        return "text"
    if present <= {"integer", "long integer", "missing"}:
        return "integers"
    # A float holds 15 digits: a longer integer, even among decimals, is an identifier.
    return "long integers" if "long integer" in present else "decimals"
