"""Criteo's click log: 40 tab-separated fields without a header; plain, gzip or zstd.

Label, I1 to I13 (integers), C1 to C26 (8 lower-case hex digits); any field but the label may be
empty. Kaggle's ``train.txt`` and the 24 files ``day_0.gz`` … of the terabyte log have this format.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from afm_dist.errors import DataError
from data_prep.sources.delimited import Texts
from data_prep.sources.source import RawField
from data_prep.sources.text_log import TextField, TextLog, Values, integers

INTEGERS = 13
TOKENS = 26
LABEL = "label"


def _every_byte(value: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([value]) * 8, "little"))


_LOW_NIBBLE = _every_byte(0x0F)
_HIGH_NIBBLE = _every_byte(0xF0)
_ONES = _every_byte(1)
_SIXES = _every_byte(6)
_ZERO_CHARS = _every_byte(ord("0"))
_PAIRS = np.uint64(0x00FF00FF00FF00FF)
_QUADS = np.uint64(0x0000FFFF0000FFFF)
_OCTET = np.uint64(0x00000000FFFFFFFF)


def hex_tokens(texts: Texts) -> Values:
    """Eight lower-case hex digits as UInt32, all characters of a word decoded at once."""
    word = texts.words
    # '0'-'9' are 0x30-0x39, 'a'-'f' are 0x61-0x66: bit 6 tells the two apart.
    digits = (word & _LOW_NIBBLE) + ((word >> np.uint64(6)) & _ONES) * np.uint64(9)
    is_letter = ((digits + _SIXES) >> np.uint64(4)) & _ONES
    spelled = digits + _ZERO_CHARS + is_letter * np.uint64(ord("a") - 10 - ord("0"))
    missing = word == 0
    is_hex = (spelled == word) & ((digits & _HIGH_NIBBLE) == 0)
    value = digits.byteswap()
    value = (value | (value >> np.uint64(4))) & _PAIRS
    value = (value | (value >> np.uint64(8))) & _QUADS
    value = (value | (value >> np.uint64(16))) & _OCTET
    # What is longer than eight characters is no token, and has no value.
    n_longer = len(texts.longer)
    valid = np.concatenate([missing | is_hex, np.zeros(n_longer, dtype=bool)])
    values = np.concatenate([value.astype(np.uint32), np.zeros(n_longer, dtype=np.uint32)])
    return pl.Series(pa.array(values, mask=np.pad(missing, (0, n_longer)))), valid


def hex_text(values: np.ndarray) -> pl.Series:
    """Unsigned 32-bit integers (V) as eight lower-case hex digits each."""
    nibbles = (values[:, None] >> np.arange(28, -1, -4, dtype=np.uint32)) & np.uint32(15)
    characters = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[nibbles]
    offsets = np.arange(0, 8 * len(values) + 1, 8, dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(characters.tobytes())]
    return pl.Series(pa.Array.from_buffers(pa.large_string(), len(values), buffers))


class CriteoSource(TextLog):
    """Criteo's raw log."""

    kind = "criteo"
    label = LABEL
    token_type: pl.DataType = pl.UInt32()
    delimiter = "\t"
    n_fields = 1 + INTEGERS + TOKENS
    label_position = 0
    layout = (
        *(
            TextField(
                position=n,
                field=RawField(name=f"I{n}", kind="numeric"),
                parse=integers,
                fault="not an integer",
            )
            for n in range(1, 1 + INTEGERS)
        ),
        *(
            TextField(
                position=INTEGERS + n,
                field=RawField(name=f"C{n}", kind="categorical"),
                parse=hex_tokens,
                fault="not 8 lower-case hex digits",
            )
            for n in range(1, 1 + TOKENS)
        ),
    )

    def check_first_line(self, path: str, line: bytes) -> None:
        """Criteo's lines have tabs."""
        if b"\t" not in line:
            raise DataError(
                f"{path}:1: no tab in the first line; --source criteo reads 40 tab-separated fields"
            )

    def token_text(self, tokens: pl.Series) -> pl.Series:
        """Eight hex digits, or the empty text."""
        text = hex_text(tokens.fill_null(0).to_numpy())
        return pl.select(pl.when(tokens.is_null()).then(pl.lit("")).otherwise(text)).to_series()
