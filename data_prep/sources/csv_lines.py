"""Lines of a CSV file: which are empty or overlong, and which line each row stands on.

A line ends in LF, CR LF, or CR alone, as a row does for Arrow; inside quotes too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources import files
from data_prep.sources.files import QUOTE, Lines
from data_prep.sources.source import Rejected

LINE_END = r"\r\n|\r|\n"
_LINE_END = re.compile(LINE_END.encode())
# A byte that is not UTF-8, decoded; and as it is written for Arrow, which no text has without a NUL.
_UNDECODED = re.compile("[\udc80-\udcff]")
_WRITTEN = re.compile(rb"\0\\x([0-9a-f]{2})")


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


def header_and_rest(text: bytes) -> tuple[bytes, bytes]:
    """The first line, without its end, and what follows it."""
    end = _LINE_END.search(text)
    return (text[: end.start()], text[end.end() :]) if end else (text, b"")


def decodable(text: bytes) -> bytes:
    """The text with NUL and ``\\xNN`` for each byte that is not UTF-8.

    pyarrow decodes a malformed row before it tells of it, and stops where it cannot.
    """
    try:
        text.decode()
        return text
    except UnicodeDecodeError:
        decoded = text.decode(errors="surrogateescape")
    return _UNDECODED.sub(lambda found: f"\0\\x{ord(found[0]) - 0xDC00:02x}", decoded).encode()


def original(text: bytes) -> bytes:
    """The inverse of ``decodable``."""
    return _WRITTEN.sub(lambda found: bytes.fromhex(found[1].decode()), text)


@dataclass
class ScannedLines:
    """What was seen in the text before it was parsed.

    Attributes:
        line: Number of the next line.
        overlong: The lines that are too long, by number; they are parsed as empty ones, or as a quote
            where they begin or end a quoted value.
        empty: Numbers of the empty lines.
        quoted: Whether there was a quote, so that a line may end inside a value.
        undecodable: Whether there was text that is not UTF-8.
    """

    line: int
    overlong: dict[int, Rejected] = field(default_factory=dict)
    empty: set[int] = field(default_factory=set)
    quoted: bool = False
    undecodable: bool = False

    def whole(self, pieces: Iterable[Lines]) -> Iterator[bytes]:
        """The text of a whole file, and an empty line after it, which only an open quote swallows."""
        end = b"\n"
        for text in self.texts(pieces):
            end = text[-1:] or end
            yield text
        # The LF that has to come first becomes part of a CR LF, which is one line end.
        self.line -= end == b"\r"
        self.empty.add(self.line)
        yield b"\n" if end == b"\n" else b"\n\n"

    def texts(self, pieces: Iterable[Lines]) -> Iterator[bytes]:
        """The text to parse, piece by piece."""
        for lines in pieces:
            text = decodable(given := self._without_overlong(lines))
            self.undecodable = self.undecodable or text is not given
            self.quoted = self.quoted or QUOTE in text
            self.empty.update(self.line + index for index in empty_lines(text))
            yield text
            self.line += lines.count + lone_returns(text)

    def take_overlong(self, starts: np.ndarray, end: int) -> dict[int, Rejected]:
        """Take out what the overlong lines do to the rows; the first of them speaks for a row.

        Args:
            starts: (B) lines where consecutive rows begin.
            end: The line after them.

        Returns:
            By index of a row.
        """
        rows: dict[int, Rejected] = {}
        # Another thread adds to them: pyarrow reads ahead.
        for line in takewhile(end.__gt__, sorted(self.overlong)):
            row = int(np.searchsorted(starts, line, side="right")) - 1
            rows.setdefault(row, replace(self.overlong.pop(line), line=int(starts[row])))
        return rows

    def _without_overlong(self, lines: Lines) -> bytes:
        """The text with overlong lines emptied but for a quote that opens or closes a value."""
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
            kept[index] = QUOTE * (kept[index].count(QUOTE) % 2)
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
