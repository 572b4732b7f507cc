"""Lines of delimited text, cut into fields that are read eight characters at a time.

A field of up to eight characters fits in one 64-bit word. The words of a column are gathered at
once, and equal words are found before anything is parsed: what follows works on the distinct
texts of a column, which are many times fewer than its rows.

Shape legend: L lines, B well-cut lines, V distinct texts of a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_prep.sources.files import Lines

WORD = 8
NEWLINE = ord("\n")
TAB = "\t"
RETURN = ord("\r")

# The low n bytes of a little-endian word are the first n characters.
_FIRST_CHARACTERS = np.array([(1 << 8 * n) - 1 for n in range(WORD + 1)], dtype=np.uint64)


@dataclass(frozen=True)
class Texts:
    """The distinct texts of a column.

    Attributes:
        words: (V₁) uint64, little-endian: up to eight characters each, zeros behind them; the
            empty text is 0.
        longer: The V₂ texts that are longer, in order after the words.
    """

    words: np.ndarray
    longer: Sequence[bytes] = ()

    @classmethod
    def of(cls, texts: pa.LargeBinaryArray) -> Texts:
        """The inverse of ``to_arrow``.

        Args:
            texts: (V) of up to eight characters each, none null.
        """
        offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset :][: len(texts) + 1]
        data = np.frombuffer(texts.buffers()[2] or b"", dtype=np.uint8)
        lengths = np.diff(offsets)
        rows = np.repeat(np.arange(len(texts)), lengths)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        characters = np.zeros((len(texts), WORD), dtype=np.uint8)
        characters[rows, places] = data[offsets[rows] + places]
        return cls(characters.reshape(-1).view("<u8"))

    def __len__(self) -> int:
        return len(self.words) + len(self.longer)

    def to_arrow(self) -> pa.LargeBinaryArray:
        """(V) the texts themselves."""
        characters = np.ascontiguousarray(self.words).view(np.uint8).reshape(-1, WORD)
        used = characters != 0
        lengths = np.concatenate([used.sum(axis=1), [len(text) for text in self.longer]])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        data = b"".join([characters[used].tobytes(), *self.longer])
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(self), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        )


class Cut:
    """Some lines, cut at a delimiter.

    Args:
        lines: The text; about a megabyte, so that it stays in the cache while it is cut.
        delimiter: One character.
        n_fields: How many fields a line must have.

    Attributes:
        good: (B) indices of the lines with ``n_fields`` fields, without a NUL, and of sane length.
        words: (n_fields, B) uint64 as in ``Texts``; of a longer text the first eight characters.
    """

    def __init__(self, lines: Lines, delimiter: str, n_fields: int) -> None:
        end_of_text = b"" if lines.text.endswith(b"\n") else b"\n"
        self._buffer = np.frombuffer(b"".join([lines.text, end_of_text, bytes(WORD)]), dtype=np.uint8)
        text = self._buffer[:-WORD]
        # Half the passes where the two stand together; what else lies below is no text, and is
        # seen at once.
        cuts = np.flatnonzero(text <= NEWLINE) if delimiter == TAB else np.zeros(0, dtype=np.int64)
        if delimiter != TAB or (text[cuts] < ord(TAB)).any():
            is_cut = text == ord(delimiter)
            is_cut |= text == NEWLINE
            cuts = np.flatnonzero(is_cut)
        is_end = text[cuts] == NEWLINE
        self._line_ends = cuts[is_end]
        starts = np.empty_like(cuts)
        starts[:1] = 0
        np.add(cuts[:-1], 1, out=starts[1:])
        lengths = cuts - starts
        if b"\r" in lines.text:
            ends = np.flatnonzero(is_end & (lengths > 0))
            lengths[ends] -= text[cuts[ends] - 1] == RETURN

        regular = len(cuts) == self.lines * n_fields and bool(is_end[n_fields - 1 :: n_fields].all())
        self.good = np.arange(self.lines)
        if not regular or lines.overlong or b"\0" in lines.text:
            fields = np.diff(np.flatnonzero(is_end), prepend=-1)
            good = fields == n_fields
            good[np.searchsorted(self._line_ends, np.flatnonzero(text == 0))] = False
            good[list(lines.overlong)] = False
            self.good = np.flatnonzero(good)
            wanted = np.repeat(good, fields)
            starts, lengths = starts[wanted], lengths[wanted]

        at_every_byte = np.ndarray(
            shape=(len(self._buffer) - WORD + 1,), dtype="<u8", buffer=self._buffer.data, strides=(1,)
        )
        words = at_every_byte[starts]
        words &= _FIRST_CHARACTERS.take(lengths, mode="clip")
        # Columns are put together while the piece is in the cache.
        self.words = np.ascontiguousarray(words.reshape(-1, n_fields).T)
        long = np.flatnonzero(lengths > WORD)
        self._long_rows, self._long_fields = np.divmod(long, n_fields)
        self._long_starts, self._long_lengths = starts[long], lengths[long]

    def longer(self, field: int) -> dict[int, bytes]:
        """The texts of a field that do not fit in a word, by row (of the B)."""
        return {
            int(self._long_rows[place]): self._buffer[
                self._long_starts[place] : self._long_starts[place] + self._long_lengths[place]
            ].tobytes()
            for place in np.flatnonzero(self._long_fields == field)
        }

    @property
    def lines(self) -> int:
        """L, the number of lines, well-cut or not."""
        return len(self._line_ends)

    def line(self, index: int) -> bytes:
        """One line, without its end."""
        start = self._line_ends[index - 1] + 1 if index else 0
        return self._buffer[start : self._line_ends[index]].tobytes().removesuffix(b"\r")


def column(cuts: Sequence[Cut], field: int) -> tuple[Texts, np.ndarray]:
    """One field of the rows of several pieces.

    Returns:
        Its distinct texts, and (B) int32 which of them each row holds.
    """
    longer: dict[int, bytes] = {}
    first = 0
    for cut in cuts:
        longer.update({first + row: text for row, text in cut.longer(field).items()})
        first += len(cut.good)
    words = np.concatenate([cut.words[field] for cut in cuts])
    return distinct(words, longer)


def distinct(words: np.ndarray, longer: Mapping[int, bytes]) -> tuple[Texts, np.ndarray]:
    """The distinct texts of one column.

    Args:
        words: (B) uint64.
        longer: The texts that do not fit in a word, by row.

    Returns:
        The texts, and (B) int32 which of them each row holds.
    """
    encoded = pa.array(words).dictionary_encode()
    short, codes = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
    if not longer:
        return Texts(short), codes
    codes = codes.copy()
    texts: dict[bytes, int] = {}
    for row, text in longer.items():
        codes[row] = texts.setdefault(text, len(short) + len(texts))
    return Texts(short, tuple(texts)), codes
