"""Seeded damage of files: of any bytes, and of JSON as JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Path = tuple[Any, ...]

LONG_TEXT = b" " * (1 << 16)
DEEP = 100_000


def mutated(content: bytes, generator: random.Random, others: list[bytes]) -> bytes:
    """The content of a file, damaged in one way or, now and then, in several.

    Args:
        content: Of the file.
        generator: Chooses.
        others: Contents of other files, one of which may take its place.
    """
    value = as_json(content)
    for _ in range(1 if generator.random() < 0.8 else generator.randint(2, 4)):
        if value is not None and generator.random() < 0.6:
            content = edited(value, generator)
            value = as_json(content)
        elif others and generator.random() < 0.03:
            content = generator.choice(others)
        else:
            content = generator.choice(BYTES)(content, generator)
    return content


def as_json(content: bytes) -> Any:
    """What a file holds as JSON; None where it does not."""
    if content[:1] not in (b"{", b"[") or len(content) > 1 << 20:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value or None


def _place(content: bytes, generator: random.Random) -> tuple[int, int]:
    """A short piece of the content."""
    start = generator.randrange(len(content) + 1)
    return start, min(len(content), start + generator.choice((1, 2, 4, 8, 16, 64, 1000)))


def flip(content: bytes, generator: random.Random) -> bytes:
    """One bit, or several."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def overwrite(content: bytes, generator: random.Random) -> bytes:
    """Other bytes in the place of some."""
    start, end = _place(content, generator)
    filling = generator.choice((b"\0", b"\xff", b"\x80", b"9", b" ", b"\n", b"\t", b",", b'"'))
    return content[:start] + filling * (end - start) + content[end:]


def scramble(content: bytes, generator: random.Random) -> bytes:
    """Random bytes in the place of some."""
    start, end = _place(content, generator)
    return content[:start] + generator.randbytes(end - start) + content[end:]


def truncate(content: bytes, generator: random.Random) -> bytes:
    """Without the end."""
    if generator.random() < 0.5:
        return content[: -generator.choice((1, 2, 4, 8, 9, 16, 100))]
    return content[: generator.randrange(len(content) + 1)]


def behead(content: bytes, generator: random.Random) -> bytes:
    """Without the beginning."""
    return content[generator.choice((1, 2, 4, 8, 9, 100)) :]


def delete(content: bytes, generator: random.Random) -> bytes:
    """Without some bytes."""
    start, end = _place(content, generator)
    return content[:start] + content[end:]


def duplicate(content: bytes, generator: random.Random) -> bytes:
    """With some bytes twice."""
    start, end = _place(content, generator)
    return content[:end] + content[start:end] + content[end:]


def insert(content: bytes, generator: random.Random) -> bytes:
    """With further bytes."""
    start, end = _place(content, generator)
    return content[:start] + generator.randbytes(end - start) + content[start:]


def swap(content: bytes, generator: random.Random) -> bytes:
    """Two pieces exchanged."""
    (a, b), (c, d) = sorted([_place(content, generator), _place(content, generator)])
    if b > c:
        return content
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def append(content: bytes, generator: random.Random) -> bytes:
    """With something behind it."""
    more = (b"\0", b"\n", b"}", b"garbage", content, content[:10], LONG_TEXT, generator.randbytes(64))
    return content + generator.choice(more)


def replace(content: bytes, generator: random.Random) -> bytes:
    """Something else altogether."""
    whole = (
        b"",
        b"\0" * 100,
        b"{}",
        b"[]",
        b"null",
        b"\xef\xbb\xbf" + content,
        LONG_TEXT,
        LONG_TEXT + content,
    )
    text = content.decode("latin-1")
    return generator.choice((*whole, text.encode("utf-16"), text.encode("utf-8"), b"PAR1" * 3))


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flip, flip, flip, overwrite, scramble, truncate, behead, delete, duplicate),
    *(insert, swap, append, replace),
)


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Of everything within a value, the value itself last."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths(item, (*path, index))
    yield path


# What JSON of Python does not write: put in by their marks.
RAW = {
    "RAW-NAN": "NaN",
    "RAW-INFINITY": "-Infinity",
    "RAW-1E999": "1e999",
    "RAW-LONG": "9" * 5_000,
    "RAW-DEEP": "[" * DEEP,
    "RAW-DEEP-CLOSED": "[" * 500 + "]" * 500,
    "RAW-DEEP-OBJECT": '{"a":' * DEEP,
    "RAW-SURROGATE": '"\\ud800"',
    "RAW-NUL": '"a\\u0000b"',
    "RAW-BAD-ESCAPE": '"\\x"',
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1.0, 0.5, -0.0, 1e308, 1e-320, 2**31, 2**63, 2**64, 10**30),
    *(
        "",
        "x",
        "0",
        "../../x",
        "/etc/passwd",
        "a/b",
        "nan",
        "é" * 50,
        [],
        [1],
        [[]],
        {},
        {"x": 1},
        [{}],
        ["x"],
    ),
    *RAW,
)


def edited(value: Any, generator: random.Random) -> bytes:
    """A value with one thing changed, as JSON."""
    value = json.loads(json.dumps(value))
    *above, last = generator.choice([path for path in paths(value) if path] or [(None,)])
    if last is None:
        return _dumped(generator.choice(VALUES))
    holder = value
    for key in above:
        holder = holder[key]
    what = generator.randrange(10)
    if what < 5:
        holder[last] = generator.choice(VALUES)
    elif what < 6 and isinstance(holder[last], int | float):
        holder[last] = generator.choice(
            (holder[last] + 1, -holder[last], holder[last] * 2, float(holder[last]))
        )
    elif what < 7:
        del holder[last]
    elif isinstance(holder, dict):
        _rename(holder, last, what, generator)
    else:
        holder.insert(last, holder[generator.randrange(len(holder))])
    return _dumped(value)


def _rename(holder: dict[str, Any], key: str, what: int, generator: random.Random) -> None:
    """Another name, another value of the same object, a further name, or a name twice."""
    if what == 7:
        holder[generator.choice((f"{key}x", key[:-1], key.upper(), "", "\0"))] = holder.pop(key)
    elif what == 8:
        holder[key] = holder[generator.choice(list(holder))]
    else:
        holder[generator.choice(("further", "RAW-TWICE " + key))] = holder[key]


def _dumped(value: Any) -> bytes:
    text = json.dumps(value, indent=2)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.replace('"RAW-TWICE ', '"').encode()
