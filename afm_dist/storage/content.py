"""What files hold: JSON, and digests of it all."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from io import BufferedReader
from typing import Any, TypeVar, cast

from afm_dist.errors import DataError
from afm_dist.storage.files import COPY_BYTES, info, open_read, read_bytes, write_bytes
from afm_dist.storage.location import is_local, local_path
from afm_dist.storage.object_store import reaching
from afm_dist.storage.typed_json import FILE_FIX, as_typed, parse_json

# The key of a JSON object's own digest.
SEAL = "content_sha256"
# Clocks of file systems tick every few milliseconds, those of object stores every second: a file may
# change twice within a tick.
SETTLED_NS = 2 * 10**9
KNOWN_DIGESTS = 4096

T = TypeVar("T")


def read_json(location: str, kind: type[T], *, fix: str = FILE_FIX) -> T:
    """Read the content of a JSON file; see ``parse_json``.

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


def write_sealed_json(location: str, value: Mapping[str, Any]) -> str:
    """Write a JSON object with its own digest as the last entry; returns the digest.

    For what is resumed from: a file that was altered is not taken for what was written.
    """
    value = plain(value)
    seal = fingerprint(value)
    write_json(location, {**value, SEAL: seal})
    return seal


def read_sealed_json(location: str, kind: type[T], *, fix: str, unsealed: bool = False) -> T:
    """Read what ``write_sealed_json`` wrote, without the digest.

    Args:
        location: The file.
        kind: What it should hold.
        fix: What to do about an error.
        unsealed: Whether an object without a digest is taken as it is: older releases wrote it.

    Raises:
        DataError: there is no such file, it is not JSON, of another content, or was altered.
    """
    content = read_json(location, dict[str, Any], fix=fix)
    seal = content.pop(SEAL, None)
    if seal != fingerprint(content) and not (unsealed and seal is None):
        raise DataError(f"{location}: damaged (altered since it was written); {fix}")
    return as_typed(content, kind, source=location, fix=fix)


def plain(value: Any) -> Any:
    """Convert a value to what comes back from JSON: tuples become lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def json_line(value: Any) -> str:
    """Write a value as one line of JSON."""
    return json.dumps(value, allow_nan=False)


def sha256(data: bytes | memoryview) -> str:
    """Compute the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(location: str) -> str:
    """Compute the hexadecimal SHA-256 of one file, read in pieces.

    It is read once a process, as long as its size and time of change stay the same.

    Raises:
        DataError: there is no such file.
    """
    mark = _mark(location)
    # Not yet told from a change a moment later.
    if time.time_ns() - max(mark[:2]) < SETTLED_NS:
        return _sha256_in_pieces(location)
    return _sha256_of(location, mark)


def _mark(location: str) -> tuple[int, ...]:
    """Identify a file among others of its name: times of change in ns, size, and place on a disk."""
    if not is_local(location):
        found = info(location)
        return int(found.mtime_ns or 0), 0, int(found.size or 0)
    with reaching(location):
        status = local_path(location).stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_dev, status.st_ino


@lru_cache(KNOWN_DIGESTS)
def _sha256_of(location: str, mark: tuple[int, ...]) -> str:
    """Compute the digest of a file once for each ``mark``, which identifies its content."""
    del mark
    return _sha256_in_pieces(location)


def _sha256_in_pieces(location: str) -> str:
    with open_read(location, COPY_BYTES) as file:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Compute the hexadecimal SHA-256 of a JSON-serialisable value, independent of key order."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
