"""Raw input files, local or on an object store: size, identity, bytes, lines."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from afm_dist import storage
from afm_dist.errors import DataError

CHUNK_BYTES = 8 << 20
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """Name, size and time of change: what tells cheaply whether an input is still the same."""

    path: str
    bytes: int
    modified_ns: int

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]


def _filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    if storage.is_uri(path):
        return storage.file_system(path)
    return pafs.LocalFileSystem(), path


def describe(path: str) -> InputFile:
    """Size and time of change of an input.

    Raises:
        DataError: it is absent, or a folder.
    """
    filesystem, inner = _filesystem(path)
    info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{path}: no such file; check --input")
    if info.type != pafs.FileType.File:
        raise DataError(f"{path}: not a file; name the file itself with --input")
    return InputFile(path=path, bytes=int(info.size), modified_ns=int(info.mtime_ns or 0))


def open_input(path: str) -> Any:
    """A seekable binary file object (local file or object store)."""
    if storage.is_local(path):
        return Path(storage.local_path(path)).open("rb")
    filesystem, inner = _filesystem(path)
    return filesystem.open_input_file(inner)


def open_stream(path: str, *, gzip: bool) -> Any:
    """An Arrow input stream, decompressed on the way when it is gzip."""
    filesystem, inner = _filesystem(path)
    return filesystem.open_input_stream(inner, compression="gzip" if gzip else None)


def sha256(path: str) -> str:
    """Hexadecimal SHA-256 of a file, read in bounded memory."""
    digest = hashlib.sha256()
    with open_input(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def head(path: str, size: int) -> bytes:
    """The first bytes of a file, decompressed when it is gzip."""
    with open_input(path) as file:
        raw = bytes(file.read(size))
    if not raw.startswith(GZIP_MAGIC):
        return raw
    try:
        return zlib.decompressobj(wbits=31).decompress(raw, size)
    except zlib.error as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from error


def is_gzip(path: str) -> bool:
    """Whether the content is gzip, whatever the name says."""
    with open_input(path) as file:
        return bool(file.read(2) == GZIP_MAGIC)


def lines_of_range(path: str, start: int, end: int) -> Iterator[bytes]:
    """The lines whose first byte lies in ``[start, end)``, in pieces of whole lines."""
    with open_input(path) as file:
        yield from _whole_lines(_range_chunks(file, start, end))


def _range_chunks(file: Any, start: int, end: int) -> Iterator[bytes]:
    """From the first line that starts in the range to the end of the last one that does."""
    # A line starts at ``start`` when the byte before it ends a line.
    position = max(0, start - 1)
    file.seek(position)
    skipping = start > 0
    chunk = b""
    while position < end:
        chunk = bytes(file.read(min(CHUNK_BYTES, end - position)))
        if not chunk:
            return
        position += len(chunk)
        if skipping:
            cut = chunk.find(b"\n") + 1
            skipping = cut == 0
            if not skipping:
                yield chunk[cut:]
        else:
            yield chunk
    if skipping or chunk.endswith(b"\n"):
        return
    while chunk := bytes(file.read(1 << 16)):
        cut = chunk.find(b"\n") + 1
        yield chunk[:cut] if cut else chunk
        if cut:
            return


def lines_of_gzip(path: str) -> Iterator[bytes]:
    """The lines of a whole gzip file, in pieces of whole lines.

    Raises:
        DataError: the file is truncated or damaged.
    """
    try:
        with open_input(path) as raw, gzip.GzipFile(fileobj=raw) as file:
            yield from _whole_lines(iter(lambda: file.read(CHUNK_BYTES), b""))
    except EOFError as error:
        raise DataError(f"{path}: the gzip file is truncated; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from error


def _whole_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes cut at line ends; only the very last piece may lack one."""
    waiting: list[bytes] = []
    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            waiting.append(chunk)
            continue
        yield b"".join([*waiting, chunk[:cut]])
        waiting = [chunk[cut:]] if cut < len(chunk) else []
    if any(waiting):
        yield b"".join(waiting)
