"""Criteo's text, parsed eight characters at a time.

A token of 8 hex digits, and an integer of up to 8 digits, each fit in one 64-bit word. The words
are gathered for a whole column at once and decoded with a few integer operations ("SIMD within
a register"), which checks every character on the way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

COLUMNS = 40
INTEGERS = 13
TOKENS = 26
WORD = 8

_INTEGER = re.compile(rb"-?[0-9]{1,18}\Z")
_TOKEN = re.compile(rb"[0-9a-f]{8}\Z")


def _every_byte(value: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([value]) * WORD, "little"))


_LOW_NIBBLE = _every_byte(0x0F)
_HIGH_NIBBLE = _every_byte(0xF0)
_ONES = _every_byte(1)
_SIXES = _every_byte(6)
_ZERO_CHARS = _every_byte(ord("0"))
_PAIRS = np.uint64(0x00FF00FF00FF00FF)
_QUADS = np.uint64(0x0000FFFF0000FFFF)
_OCTET = np.uint64(0x00000000FFFFFFFF)


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """The lines of one piece of text, ``B`` good ones among ``L``.

    Attributes:
        lines: L, all lines.
        good: (B) index of each good line.
        labels: (B) uint8.
        integers: 13 pairs of (B) float64 values and (B) booleans, true where missing.
        tokens: 26 pairs of (B) uint32 values and (B) booleans, true where missing.
        bad: Index, reason and text of each other line.
    """

    lines: int
    good: np.ndarray
    labels: np.ndarray
    integers: list[tuple[np.ndarray, np.ndarray]]
    tokens: list[tuple[np.ndarray, np.ndarray]]
    bad: list[tuple[int, str, str]]


def parse(text: bytes) -> Parsed:
    """Parse whole lines of 40 tab-separated fields: label, 13 integers, 26 hex tokens."""
    # A word is read from up to 8 bytes before a field's end and 8 after its start.
    end_of_text = b"" if text.endswith(b"\n") else b"\n"
    buffer = np.frombuffer(b"".join([b"\n" * WORD, text, end_of_text, b"\n" * WORD]), dtype=np.uint8)
    words = np.ndarray(shape=(len(buffer) - WORD + 1,), dtype="<u8", buffer=buffer, strides=(1,))
    inner = buffer[WORD:-WORD]
    line_ends = np.flatnonzero(inner == ord("\n")) + WORD
    starts = np.concatenate([[WORD], line_ends[:-1] + 1])
    ends = np.where((line_ends > starts) & (buffer[line_ends - 1] == ord("\r")), line_ends - 1, line_ends)
    tabs = np.flatnonzero(inner == ord("\t")) + WORD

    first_tab = np.searchsorted(tabs, starts)
    full = np.flatnonzero(np.searchsorted(tabs, ends) - first_tab == COLUMNS - 1)
    cuts = tabs[first_tab[full][:, None] + np.arange(COLUMNS - 1)].T
    field_starts = [starts[full], *(cuts + 1)]
    field_ends = [*cuts, ends[full]]

    first = buffer[field_starts[0]]
    labels = first - np.uint8(ord("0"))
    valid = (field_ends[0] - field_starts[0] == 1) & (labels <= 1)
    integers, tokens = [], []
    for column in range(1, 1 + INTEGERS):
        values, missing, ok = _parse_integers(buffer, words, field_starts[column], field_ends[column])
        integers.append((values, missing))
        valid &= ok
    for column in range(1 + INTEGERS, COLUMNS):
        codes, missing, ok = _parse_tokens(words, field_starts[column], field_ends[column])
        tokens.append((codes, missing))
        valid &= ok

    good = full[valid]
    if len(good) < len(full):
        labels = labels[valid]
        integers = [(values[valid], missing[valid]) for values, missing in integers]
        tokens = [(codes[valid], missing[valid]) for codes, missing in tokens]
    is_bad = np.ones(len(line_ends), dtype=bool)
    is_bad[good] = False
    bad = []
    for index in np.flatnonzero(is_bad):
        line = buffer[starts[index] : ends[index]].tobytes()
        bad.append((int(index), reason(line), line.decode("utf-8", errors="backslashreplace")))
    return Parsed(lines=len(line_ends), good=good, labels=labels, integers=integers, tokens=tokens, bad=bad)


def _parse_tokens(
    words: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eight hex digits per token: (values, missing, valid)."""
    word = words[starts]
    # '0'-'9' are 0x30-0x39, 'a'-'f' are 0x61-0x66: bit 6 tells the two apart.
    digits = (word & _LOW_NIBBLE) + ((word >> np.uint64(6)) & _ONES) * np.uint64(9)
    is_letter = ((digits + _SIXES) >> np.uint64(4)) & _ONES
    spelled = digits + _ZERO_CHARS + is_letter * np.uint64(ord("a") - 10 - ord("0"))
    lengths = ends - starts
    missing = lengths == 0
    valid = missing | ((lengths == WORD) & (spelled == word) & ((digits & _HIGH_NIBBLE) == 0))
    value = digits.byteswap()
    value = (value | (value >> np.uint64(4))) & _PAIRS
    value = (value | (value >> np.uint64(8))) & _QUADS
    value = (value | (value >> np.uint64(16))) & _OCTET
    return value.astype(np.uint32), missing, valid


def _parse_integers(
    buffer: np.ndarray, words: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers of any length, those up to 8 digits at once: (values, missing, valid)."""
    missing = starts == ends
    negative = ~missing & (buffer[starts] == ord("-"))
    digits = ends - starts - negative
    short = (digits >= 1) & (digits <= WORD)
    # The word ends with the field; what precedes the field becomes leading zeros.
    unused = np.where(short, WORD - digits, 0).astype(np.uint64) * np.uint64(8)
    keep = ~np.uint64(0) << unused
    word = (words[ends - WORD] & keep) | (_ZERO_CHARS & ~keep)
    only_digits = ((word & _HIGH_NIBBLE) == _ZERO_CHARS) & (((word + _SIXES) & _HIGH_NIBBLE) == _ZERO_CHARS)
    value = word & _LOW_NIBBLE
    value = (value * np.uint64(10) + (value >> np.uint64(8))) & _PAIRS
    value = (value * np.uint64(100) + (value >> np.uint64(16))) & _QUADS
    value = (value * np.uint64(10_000) + (value >> np.uint64(32))) & _OCTET
    values = value.astype(np.float64)
    values[negative] *= -1
    valid = missing | (short & only_digits)
    for row in np.flatnonzero(digits > WORD):
        text = buffer[starts[row] : ends[row]].tobytes()
        if _INTEGER.match(text):
            values[row] = float(int(text))
            valid[row] = True
    values[missing] = 0.0
    return values, missing, valid


def reason(line: bytes) -> str:
    """Why a line is not a row of Criteo's log."""
    fields = line.split(b"\t")
    if len(fields) != COLUMNS:
        return f"{len(fields)} fields instead of {COLUMNS}"
    if fields[0] not in (b"0", b"1"):
        return f"label {_show(fields[0])} is not 0 or 1"
    for number, value in enumerate(fields[1 : 1 + INTEGERS], start=1):
        if value and not _INTEGER.match(value):
            return f"I{number} {_show(value)} is not an integer"
    for number, value in enumerate(fields[1 + INTEGERS :], start=1):
        if value and not _TOKEN.match(value):
            return f"C{number} {_show(value)} is not 8 lower-case hex digits"
    raise AssertionError(f"a well-formed line was rejected: {line!r}")


def _show(value: bytes) -> str:
    return repr(value[:40].decode("utf-8", errors="backslashreplace"))
