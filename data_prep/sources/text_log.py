"""Logs of delimited text with a fixed layout: Criteo's and Avazu's."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa

from afm_dist.errors import DataError, OptionError
from data_prep.columns import Column
from data_prep.sources import files
from data_prep.sources.delimited import WORD, Cut, Texts, column
from data_prep.sources.file_formats import PARQUET_MAGIC
from data_prep.sources.files import Lines
from data_prep.sources.forms import text_of
from data_prep.sources.short_texts import Values
from data_prep.sources.source import (
    Block,
    RawField,
    RawRows,
    Rejected,
    Source,
    known_columns,
    open_inputs,
)
from data_prep.split import SplitRule

MIN_BLOCK_BYTES = 4 << 20
MAX_BLOCK_BYTES = 32 << 20
PART_BYTES = 32 << 20
PART_BAD_LINES = 10_000
LABEL_WORDS = np.array([ord("0"), ord("1")], dtype=np.uint64)
BLOCKS = 16
COMPRESSION_RATIO = 3
SAMPLE_BYTES = 1 << 18
LABEL_LINES = 100


class FormatError(DataError):
    """A file whose first line is not of the format."""


@dataclass(frozen=True, kw_only=True)
class TextField:
    """A field of the text.

    Attributes:
        position: Among the fields of a line, from 0.
        field: What becomes of it.
        parse: From distinct texts to distinct values.
        fault: What to say of a value that is not as it should be, after "is".
    """

    position: int
    field: RawField
    parse: Callable[[Texts], Values]
    fault: str


class TextLog(Source):
    """A log whose every line has the same fields.

    Args:
        paths: The files, in order.
        block_bytes: Bytes per block of a plain file; by default 1/16 of the input, at least 4 MB,
            at most 32 MB. A compressed file is one block.
        labelled: Otherwise nobody asks for the label: it may be anything, or its field not be there.
        kept: Names of columns to carry along.

    Attributes:
        delimiter: Between fields.
        names: Of the fields of a line, in order.
        header: The first line of every file; None: there is none.
        label_position: Which field is the label; None: nobody asks.
        layout: The other fields, in model order; what is not listed is not read.

    Raises:
        DataError: a file is absent, empty, or of another format.
        OptionError: there is no column to carry along of that name.
    """

    delimiter: str
    names: tuple[str, ...]
    header: bytes | None = None
    label_position: int | None
    layout: Sequence[TextField]

    def __init__(
        self,
        paths: Sequence[str],
        *,
        block_bytes: int | None = None,
        labelled: bool = True,
        kept: Sequence[str] = (),
    ) -> None:
        self.fields = tuple(text_field.field for text_field in self.layout)
        described = [files.describe(path) for path in paths]
        if not labelled:
            self._forget_label(paths)
        if missing := [name for name in kept if name not in self.names]:
            raise OptionError(
                f"--keep {', '.join(missing)}: {paths[0]} has no such column; it has: {', '.join(self.names)}"
            )
        self.kept = dict.fromkeys(kept, pa.string())
        self.inputs = open_inputs(described, self.data_start, may_have_no_rows=not labelled)
        self._compression = tuple(files.compression_of(path) for path in self.paths)
        size = sum(file.bytes for file in self.inputs)
        self.block_bytes = block_bytes or min(max(size // BLOCKS, MIN_BLOCK_BYTES), MAX_BLOCK_BYTES)

    def _deciding_types(self, split: SplitRule) -> dict[str, pa.DataType]:
        """Text."""
        return {name: pa.string() for name in known_columns(split, self.names, self.label)}

    @property
    def n_fields(self) -> int:
        """Fields of a line."""
        return len(self.names)

    def _forget_label(self, paths: Sequence[str]) -> None:
        """Read no label, and expect none where the first lines have a field less.

        Raises:
            DataError: some files have the label, others not.
        """
        label, self.label_position = self.label_position, None
        delimiter, lacking = self.delimiter.encode(), dict[str, bool]()
        for path in paths:
            lines = files.head(path, SAMPLE_BYTES).split(b"\n")[: LABEL_LINES if self.header is None else 1]
            # An empty file says nothing, nor do malformed lines; another format is refused later.
            fields = Counter(line.count(delimiter) + 1 for line in lines)
            if fields[self.n_fields - 1] != fields[self.n_fields]:
                lacking[path] = fields[self.n_fields - 1] > fields[self.n_fields]
        if label is None or not any(lacking.values()):
            return
        if not all(lacking.values()):
            without, one = (next(p for p in lacking if lacking[p] is is_so) for is_so in (True, False))
            raise DataError(
                f"{without}: its lines have a field less than those of {one}: only one of them has "
                f"the label, '{self.label}'; score them one after the other"
            )
        self.names = (*self.names[:label], *self.names[label + 1 :])
        self.layout = [
            replace(each, position=each.position - (each.position > label)) for each in self.layout
        ]
        if self.header is not None:
            self.header = self.delimiter.join(self.names).encode()

    @abstractmethod
    def check_first_line(self, path: str, line: bytes) -> None:
        """Refuse at once a file of another format.

        Raises:
            FormatError: naming the file.
        """

    def data_start(self, path: str) -> int | None:
        """Bytes before the first row of a file; None: it has no rows."""
        sample = files.head(path, SAMPLE_BYTES)
        line, newline, rest = sample.partition(b"\n")
        if sample.startswith(PARQUET_MAGIC):
            raise FormatError(f"{path}: a Parquet file; read it with --source tabular")
        if sample:
            self.check_first_line(path, line.removesuffix(b"\r"))
        if self.header is None:
            return 0 if sample else None
        return len(line) + len(newline) if rest else None

    def blocks(self) -> list[Block]:
        """Byte ranges of plain files; whole compressed files."""
        result = []
        for index, file in enumerate(self.inputs):
            sample, size = files.head(file.path, SAMPLE_BYTES), file.bytes
            row_bytes = len(sample) / max(1, sample.count(b"\n"))
            step = self.block_bytes
            if self._compression[index]:
                step, row_bytes = size, row_bytes / COMPRESSION_RATIO
            for start in range(0, size, step):
                end = min(size, start + step)
                rows = max(1, round((end - start) / row_bytes))
                result.append(Block(file=index, start=start, end=end, expected_rows=rows))
        return result

    def count_rows(self, block: Block) -> int:
        """Number of lines after the header."""
        return sum(lines.count for lines in self._lines(block))

    def _lines(self, block: Block) -> Iterator[Lines]:
        path, compression = self.paths[block.file], self._compression[block.file]
        if compression:
            pieces = files.lines_of_compressed(path, compression)
        else:
            pieces = files.lines_of_range(path, block.start, block.end)
        first = True
        for lines in pieces:
            if first and block.start == 0 and self.header is not None:
                lines = lines.without_first(lines.text.find(b"\n") + 1)
            first = False
            if lines.text:
                yield lines

    def read(self, block: Block, first_row: int) -> Iterator[RawRows]:
        """Parse the lines of a block; a part ends early where many lines are bad."""
        cuts: list[Cut] = []
        size = bad = 0
        for lines in self._lines(block):
            size += len(lines.text)
            for cut in self._cut(lines):
                cuts.append(cut)
                bad += cut.lines - self._labelled(cut)
                if size >= PART_BYTES or bad >= PART_BAD_LINES:
                    yield self._rows(cuts, first_row)
                    first_row += sum(cut.lines for cut in cuts)
                    cuts, size, bad = [], 0, 0
        if cuts:
            yield self._rows(cuts, first_row)

    def _labelled(self, cut: Cut) -> int:
        """Lines that have a label, or could have one where nobody asks."""
        if self.label_position is None:
            return len(cut.good)
        return int(np.isin(cut.words[self.label_position], LABEL_WORDS).sum())

    def _cut(self, lines: Lines) -> Iterator[Cut]:
        """A piece, or what it is cut into where lines are shorter than those of any log."""
        cut = Cut(lines, self.delimiter, self.n_fields)
        if cut.lines <= PART_BAD_LINES:
            yield cut
            return
        for some in _in_pieces(lines, PART_BAD_LINES):
            yield Cut(some, self.delimiter, self.n_fields)

    def _rows(self, cuts: Sequence[Cut], first_row: int) -> RawRows:
        """The good rows of some pieces, and the bad ones."""
        first_lines = np.cumsum([0, *(cut.lines for cut in cuts)])
        numbers = np.concatenate([first + cut.good for first, cut in zip(first_lines, cuts, strict=False)])
        labels, good = np.zeros(len(numbers), dtype=np.uint8), np.ones(len(numbers), dtype=bool)
        if self.label_position is not None:
            labels, good = _labels(column(cuts, self.label_position))
        columns: dict[str, Column] = {}
        for text_field in self.layout:
            texts, codes = column(cuts, text_field.position)
            values, valid = text_field.parse(texts)
            if not valid.all():
                good = good & valid[codes]
            columns[text_field.field.name] = Column(values, codes)
        rows = RawRows(
            labels=labels,
            columns=columns,
            numbers=first_row + numbers,
            lines=self.line_of(first_row) + numbers,
            kept={name: self._texts(cuts, self.names.index(name)) for name in self.kept},
        )
        if not good.all():
            rows = rows.filter(good)
        is_bad = np.ones(first_lines[-1], dtype=bool)
        is_bad[numbers[good]] = False
        return rows.with_rejected(
            [self._rejected(cuts, first_lines, int(number), first_row) for number in np.flatnonzero(is_bad)]
        )

    def _texts(self, cuts: Sequence[Cut], position: int) -> pa.Array:
        """(B) the texts of a field, null where empty or not UTF-8."""
        texts, codes = column(cuts, position)
        values = text_of(pl.Series(texts.to_arrow()))
        return values.gather(codes).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())

    def tokens_of(self, text: pl.Series) -> pl.Series:
        """As the parser of the raw log reads them."""
        parse, fault = next((f.parse, f.fault) for f in self.layout if f.field.kind == "categorical")
        present = text.fill_null("")
        wrong = present.str.len_bytes() > WORD
        if not wrong.any():
            raw = present.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.large_binary())
            values, valid = parse(Texts.of(raw))
            wrong = ~pl.Series(valid)
        if wrong.any():
            raise DataError(f"token {present.filter(wrong)[0][:40]!r} is {fault}")
        return values

    def _rejected(
        self, cuts: Sequence[Cut], first_lines: np.ndarray, number: int, first_row: int
    ) -> Rejected:
        piece = int(np.searchsorted(first_lines, number, side="right")) - 1
        line = cuts[piece].line(number - int(first_lines[piece]))
        return Rejected(
            line=self.line_of(first_row + number),
            reason=self.reason(line),
            text=line[: files.MAX_REJECTED_BYTES].decode("utf-8", errors="backslashreplace"),
        )

    def reason(self, line: bytes) -> str:
        """Why a line is not a row of this log."""
        if len(line) >= files.MAX_LINE_BYTES:
            return f"the line is longer than {files.MAX_LINE_BYTES} bytes"
        if b"\0" in line:
            return f"a NUL byte at character {line.index(0) + 1}"
        fields = line.split(self.delimiter.encode())
        if len(fields) != self.n_fields:
            return f"{len(fields)} fields instead of {self.n_fields}"
        if self.label_position is not None and fields[self.label_position] not in (b"0", b"1"):
            return f"label {_show(fields[self.label_position])} is not 0 or 1"
        for text_field in self.layout:
            text = fields[text_field.position]
            word = np.frombuffer(text.ljust(8, b"\0")[:8], dtype="<u8")
            texts = Texts(word) if len(text) <= 8 else Texts(word[:0], (text,))
            if not text_field.parse(texts)[1].all():
                return f"{text_field.field.name} {_show(text)} is {text_field.fault}"
        raise AssertionError(f"a well-formed line was rejected: {line!r}")


def _in_pieces(lines: Lines, size: int) -> Iterator[Lines]:
    """The same lines, at most ``size`` at a time."""
    ends = np.flatnonzero(np.frombuffer(lines.text, dtype=np.uint8) == ord("\n")) + 1
    bounds = [0, *ends[size - 1 :: size].tolist(), len(lines.text)]
    for number, (start, end) in enumerate(pairwise(bounds)):
        if start < end:
            first = number * size
            overlong = tuple(index - first for index in lines.overlong if first <= index < first + size)
            yield Lines(lines.text[start:end], overlong)


def _labels(read: tuple[Texts, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(B) labels as uint8, and (B) whether they are labels."""
    texts, codes = read
    labels = np.full(len(texts), 2, dtype=np.uint8)
    for value in (0, 1):
        labels[: len(texts.words)][texts.words == ord(str(value))] = value
    of_rows = labels[codes]
    return of_rows, of_rows < 2


def _show(value: bytes) -> str:
    return repr(value[:40].decode("utf-8", errors="backslashreplace"))
