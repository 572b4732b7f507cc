"""What files hold: JSON, and digests of it all."""

from __future__ import annotations

import hashlib
import json
from io import BufferedReader
from typing import Any, TypeVar, cast

from afm_dist.storage.files import COPY_BYTES, open_read, read_bytes, write_bytes
from afm_dist.storage.typed_json import MAKE_AGAIN, parse_json

T = TypeVar("T")


def read_json(location: str, kind: type[T], *, fix: str = MAKE_AGAIN) -> T:
    """The content of a JSON file; see ``parse_json``.

    Args:
        location: The file.
        kind: What it should hold.
        fix: What to do about an error.

    Raises:
        DataError: there is no such file, it is not JSON, or of another content.
    """
    return parse_json(read_bytes(location), kind, source=location, fix=fix)


def write_json(location: str, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    write_bytes(location, json_text(value).encode())


def json_text(value: Any) -> str:
    """Give the content of a JSON file as ``write_json`` writes it."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A value as it comes back from JSON: tuples as lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def json_line(value: Any) -> str:
    """A value as one line of JSON."""
    return json.dumps(value, allow_nan=False)


def sha256(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(location: str) -> str:
    """Hexadecimal SHA-256 of one file, read in pieces."""
    with open_read(location, COPY_BYTES) as file:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON-serialisable value, independent of key order."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
