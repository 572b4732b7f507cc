"""Texts of up to eight characters, one to a 64-bit word: all characters of a word decoded at once.

The parsers take the distinct texts of a column, V of them; what is longer is decoded one by one.
"""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pyarrow as pa

from data_prep.sources.delimited import WORD, Texts

LONG_INTEGER = re.compile(rb"-?[0-9]{1,300}")

Values = tuple[pl.Series, np.ndarray]
"""(V) values, null where missing, and (V) booleans: whether each is what the format says."""


def _every_byte(value: int) -> np.uint64:
    """A word of eight equal bytes."""
    return np.uint64(int.from_bytes(bytes([value]) * WORD, "little"))


_BYTE = np.uint64(8)
_LAST_BYTE = np.uint64(0xFF)
_LOW_NIBBLE = _every_byte(0x0F)
_HIGH_NIBBLE = _every_byte(0xF0)
_ONES = _every_byte(1)
_SIXES = _every_byte(6)
_ZERO_CHARS = _every_byte(ord("0"))
_PAIRS = np.uint64(0x00FF00FF00FF00FF)
_QUADS = np.uint64(0x0000FFFF0000FFFF)
_OCTET = np.uint64(0x00000000FFFFFFFF)


def integers(texts: Texts) -> Values:
    """Integers of any length as Float64; those of up to eight characters all at once."""
    words = texts.words
    lengths = np.count_nonzero(np.ascontiguousarray(words).view(np.uint8).reshape(-1, WORD), axis=1)
    negative = (words & _LAST_BYTE) == ord("-")
    digits = np.where(negative, words >> _BYTE, words)
    n_digits = (lengths - negative).astype(np.uint64)
    # The digits move to the end of the word; what precedes them becomes zeros.
    unused = (np.uint64(WORD) - n_digits) * _BYTE
    keep = np.where(n_digits > 0, ~np.uint64(0) << np.minimum(unused, np.uint64(63)), np.uint64(0))
    digits = ((digits << np.minimum(unused, np.uint64(63))) & keep) | (_ZERO_CHARS & ~keep)
    is_digits = ((digits & _HIGH_NIBBLE) == _ZERO_CHARS) & (((digits + _SIXES) & _HIGH_NIBBLE) == _ZERO_CHARS)
    value = digits & _LOW_NIBBLE
    value = (value * np.uint64(10) + (value >> np.uint64(8))) & _PAIRS
    value = (value * np.uint64(100) + (value >> np.uint64(16))) & _QUADS
    value = (value * np.uint64(10_000) + (value >> np.uint64(32))) & _OCTET
    missing = lengths == 0
    longer = [_long_integer(text) for text in texts.longer]
    values = np.concatenate(
        [np.where(negative, -1.0, 1.0) * value.astype(np.float64), [n or 0.0 for n in longer]]
    )
    valid = np.concatenate([missing | ((n_digits > 0) & is_digits), [n is not None for n in longer]])
    return pl.Series(pa.array(values, mask=np.pad(missing, (0, len(longer))))), valid.astype(bool)


def _long_integer(text: bytes) -> float | None:
    """An integer of more than eight characters; None where it is none, or too large for a float64."""
    return float(text) if LONG_INTEGER.fullmatch(text) else None


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


def short_tokens(texts: Texts) -> Values:
    """Tokens of up to eight characters as UInt64, in the order of their texts."""
    packed = pl.Series(np.concatenate([texts.words.byteswap(), np.zeros(len(texts.longer), np.uint64)]))
    valid = _utf8(texts).is_not_null().to_numpy().copy()
    valid[len(texts.words) :] = False
    return pl.select(pl.when(packed != 0).then(packed)).to_series(), valid


def short_token_text(tokens: pl.Series) -> pl.Series:
    """The inverse of ``short_tokens``; missing becomes the empty text."""
    words = tokens.fill_null(0).to_numpy().byteswap()
    text = pl.Series(Texts(words).to_arrow()).cast(pl.String)
    return text.rename(tokens.name)


def _utf8(texts: Texts) -> pl.Series:
    """(V) texts, null where they are not UTF-8."""
    raw = pl.Series(texts.to_arrow())
    try:
        return raw.cast(pl.String)
    except pl.exceptions.PolarsError:
        return pl.Series([_decode(text) for text in raw], dtype=pl.String)


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
