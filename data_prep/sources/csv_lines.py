"""Lines of a CSV file: which are empty or overlong, and which line each row stands on.

A line ends in LF, CR LF, or CR alone, as a row does for Arrow; inside quotes too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources import files
from data_prep.sources.files import Lines
from data_prep.sources.source import Rejected

LINE_END = r"\r\n|\r|\n"
QUOTE = b'"'
_LINE_END = re.compile(LINE_END.encode())


def lone_returns(text: bytes) -> int:
    """Number of CR that no LF follows."""
    return text.count(b"\r") - text.count(b"\r\n") if b"\r" in text else 0


def line_ends(text: bytes) -> int:
    """Number of line ends."""
    return text.count(b"\n") + lone_returns(text)


def empty_lines(text: bytes) -> list[int]:
    """Indices of the lines without a single character."""
    if not (text[:1] in (b"\n", b"\r") or b"\n\n" in text or b"\n\r" in text or lone_returns(text)):
        return []
    lines = _LINE_END.split(text)
    # What follows the last line end is a line only if there is something.
    return [index for index, line in enumerate(lines[:-1]) if not line]


@dataclass
class Seen:
    """What was seen in the text before it was parsed.

    Attributes:
        line: Number of the next line.
        overlong: The lines that are too long, by number; they are parsed as empty ones.
        empty: Numbers of the empty lines.
        quoted: Whether there was a quote, so that a line may end inside a value.
    """

    line: int
    overlong: dict[int, Rejected] = field(default_factory=dict)
    empty: set[int] = field(default_factory=set)
    quoted: bool = False

    def texts(self, pieces: Iterable[Lines]) -> Iterator[bytes]:
        """The text to parse, piece by piece."""
        for lines in pieces:
            text = self._without_overlong(lines)
            self.quoted = self.quoted or QUOTE in text
            self.empty.update(self.line + index for index in empty_lines(text))
            yield text
            self.line += lines.count + lone_returns(text)

    def _without_overlong(self, lines: Lines) -> bytes:
        """The text with overlong lines emptied."""
        if not lines.overlong:
            return lines.text
        kept = lines.text.split(b"\n")
        for index in lines.overlong:
            line = self.line + index + lone_returns(b"\n".join([*kept[:index], b""]))
            self.overlong[line] = Rejected(
                line=line,
                reason=f"the line is longer than {files.MAX_LINE_BYTES} bytes",
                text=kept[index][: files.MAX_REJECTED_BYTES].decode("utf-8", errors="backslashreplace"),
            )
            kept[index] = b""
        return b"\n".join(kept)


def ends_in_values(table: pa.Table | pa.RecordBatch) -> np.ndarray:
    """(B) line ends inside the binary values of each row."""
    total = np.zeros(table.num_rows, dtype=np.int64)
    for column in table.columns:
        if not _may_hold_line_end(column):
            continue
        counts = pc.count_substring_regex(column, LINE_END)
        total += pc.fill_null(counts, 0).to_numpy(zero_copy_only=False)
    return total


def _may_hold_line_end(column: pa.BinaryArray) -> bool:
    characters = column.buffers()[2]
    if characters is None:
        return False
    text = characters.to_pybytes()
    return b"\n" in text or b"\r" in text
