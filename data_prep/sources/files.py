"""Raw input files, local or on an object store: size, identity, bytes, lines."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from afm_dist import storage
from afm_dist.errors import DataError, OptionError, StorageError
from data_prep.sources.file_formats import FORMAT_BYTES, check_format

CHUNK_BYTES = 1 << 20
READ_BYTES = 1 << 18
MAX_LINE_BYTES = 1 << 20
MAX_REJECTED_BYTES = 2_000
MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
QUOTE = b'"'

Compression = Literal["gzip", "zstd"]


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """Name, size and time of change: what tells cheaply whether an input is still the same."""

    path: str
    bytes: int
    modified_ns: int

    @property
    def name(self) -> str:
        """The last part of the path."""
        last = self.path.rstrip("/").rpartition("/")[2]
        return unquote(last) if storage.is_uri(self.path) else last


@dataclass(frozen=True)
class Lines:
    """Some whole lines of a file; only the last line of the file may lack its line end.

    Attributes:
        text: The lines.
        overlong: Indices of lines of more than ``MAX_LINE_BYTES``, of which ``text`` holds only
            the beginning, and a quote where the rest has an odd number of them: what is quoted after the
            line still is.
    """

    text: bytes
    overlong: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of lines."""
        # Several times faster than ``bytes.count`` where matches are this frequent.
        ends = int(np.count_nonzero(np.frombuffer(self.text, dtype=np.uint8) == ord("\n")))
        return ends + (bool(self.text) and not self.text.endswith(b"\n"))

    @classmethod
    def concatenate(cls, pieces: Sequence[Lines]) -> Lines:
        """The lines of several pieces, all but the last of which end in a line end."""
        overlong: list[int] = []
        before = 0
        for piece in pieces:
            overlong.extend(before + index for index in piece.overlong)
            before += piece.count
        return cls(b"".join(piece.text for piece in pieces), tuple(overlong))

    def without_first(self, size: int) -> Lines:
        """Without the first bytes: a byte-order mark, or a header."""
        gone = self.text.count(b"\n", 0, size)
        overlong = tuple(index - gone for index in self.overlong if index >= gone)
        return replace(self, text=self.text[size:], overlong=overlong)


def describe(path: str) -> InputFile:
    """Size and time of change of an input.

    Raises:
        DataError: it is absent, or a folder.
    """
    info = storage.info(path)
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{path}: no such file; check --input")
    if info.type != pafs.FileType.File:
        raise DataError(f"{path}: not a file; name the file itself with --input")
    return InputFile(path=path, bytes=int(info.size), modified_ns=int(info.mtime_ns or 0))


def expand(patterns: Sequence[str], *, as_given: bool = False) -> list[str]:
    """The files that files, folders and patterns name, in natural order: ``day_2`` before ``day_10``.

    A folder stands for the files in it, a pattern (``*``, ``?``, ``[…]`` in the last part of the
    path) for those it matches; names that begin with ``.`` or ``_`` are passed over.

    Args:
        patterns: What is named.
        as_given: Whether only the files of a folder or a pattern are put in order, and what is named
            first comes first; otherwise the order does not depend on how the shell spells the list.

    Raises:
        DataError: nothing is there, or nothing matches.
        OptionError: a file is named twice.
    """
    found: list[str] = []
    for given in patterns:
        folder, _, last = given.rpartition("/")
        if any(mark in last for mark in "*?[") and (storage.is_uri(given) or not storage.is_file(given)):
            names = [name for name in _files_in(folder or ".") if fnmatchcase(name, last)]
            matching = [storage.join(folder, name) if folder else name for name in names]
            if not matching:
                raise DataError(f"{given}: no file matches; check --input")
        elif storage.is_folder(given):
            matching = [storage.join(given, name) for name in _files_in(given)]
            if not matching:
                raise DataError(f"{given}: the folder holds no files; check --input")
        else:
            matching = [given]
        found.extend(sorted(matching, key=_natural))
    twice = [path for path, times in Counter(found).items() if times > 1]
    if twice:
        raise OptionError(f"--input: {twice[0]} is named twice; its rows would count twice")
    return found if as_given else sorted(found, key=_natural)


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key under which ``day_9`` comes before ``day_10``; escapes of a URI do not count."""
    plain = unquote(path) if storage.is_uri(path) else path
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", plain)]


def _files_in(folder: str) -> list[str]:
    return [
        info.base_name
        for info in storage.list_infos(folder)
        if info.type == pafs.FileType.File and not info.base_name.startswith((".", "_"))
    ]


def sha256(path: str) -> str:
    """Hexadecimal SHA-256 of a file, read in bounded memory."""
    return storage.file_sha256(path)


def compression_of(path: str) -> Compression | None:
    """How the content is compressed, whatever the name says.

    Raises:
        DataError: it is of a format that is not read.
    """
    with storage.open_read(path, READ_BYTES) as file:
        start = file.read(FORMAT_BYTES)
    check_format(path, start)
    if start.startswith(MAGIC["gzip"]):
        return "gzip"
    return "zstd" if start.startswith(MAGIC["zstd"]) else None


def head(path: str, size: int) -> bytes:
    """The first bytes of a file, decompressed, without a byte-order mark.

    Raises:
        DataError: it is of a format that is not read.
    """
    compression = compression_of(path)
    if compression is None:
        with storage.open_read(path, READ_BYTES) as file:
            start = file.read(size)
    else:
        start = next(_decompressed(path, compression, size), b"")
        check_format(path, start, f", compressed with {compression}")
    return start.removeprefix(BYTE_ORDER_MARK)


def lines_of_range(path: str, start: int, end: int) -> Iterator[Lines]:
    """The lines whose first byte lies in ``[start, end)`` of a plain file.

    A byte-order mark at the beginning of the file is passed over.
    """
    with storage.open_read(path) as file:
        yield from _without_mark(_whole_lines(_range_chunks(file, start, end)), at_start=start == 0)


def _without_mark(pieces: Iterator[Lines], *, at_start: bool) -> Iterator[Lines]:
    for piece in pieces:
        marked = at_start and piece.text.startswith(BYTE_ORDER_MARK)
        yield piece.without_first(len(BYTE_ORDER_MARK)) if marked else piece
        at_start = False


def _range_chunks(file: Any, start: int, end: int) -> Iterator[bytes]:
    """From the first line that starts in the range to the end of the last one that does."""
    # A line starts at ``start`` when the byte before it ends a line.
    position = max(0, start - 1)
    file.seek(position)
    skipping = start > 0
    chunk = b""
    while position < end:
        chunk = file.read(min(CHUNK_BYTES, end - position))
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
    while chunk := file.read(1 << 16):
        cut = chunk.find(b"\n") + 1
        yield chunk[:cut] if cut else chunk
        if cut:
            return


def lines_of_compressed(path: str, compression: Compression) -> Iterator[Lines]:
    """The lines of a whole compressed file.

    Raises:
        DataError: the file is truncated or damaged; the message says how far it could be read.
    """
    chunks = _decompressed(path, compression, CHUNK_BYTES)
    return _without_mark(_whole_lines(chunks), at_start=True)


def _decompressed(path: str, compression: Compression, size: int) -> Iterator[bytes]:
    """The content in chunks of at most ``size`` bytes."""
    done = 0

    def stopped(what: str) -> DataError:
        return DataError(
            f"{path}: the {compression} file is {what} after {done:,} decompressed bytes; fetch it again"
        )

    try:
        with storage.open_read(path) as raw, _decompressor(raw, compression) as file:
            waiting: list[bytes] = []
            # Small reads: what a read has decompressed is lost when it fails.
            while piece := bytes(file.read(min(READ_BYTES, size))):
                waiting.append(piece)
                done += len(piece)
                if sum(map(len, waiting)) >= size:
                    yield b"".join(waiting)
                    waiting = []
            if waiting:
                yield b"".join(waiting)
    except EOFError as error:
        raise stopped("truncated") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise stopped(f"damaged ({error})") from error
    except OSError as error:
        if compression != "zstd" or isinstance(error, StorageError):
            raise
        raise stopped("truncated" if "runcated" in str(error) else f"damaged ({error})") from error


def _decompressor(raw: Any, compression: Compression) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=raw)
    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")


def _whole_lines(chunks: Iterator[bytes]) -> Iterator[Lines]:
    """The same bytes cut at line ends, overlong lines shortened."""
    waiting: list[bytes] = []
    size = quotes = 0
    dropping = False
    for chunk in chunks:
        if dropping:
            # The rest of a line whose beginning is in ``waiting``.
            rest, newline, after = chunk.partition(b"\n")
            quotes += rest.count(QUOTE)
            if not newline:
                continue
            waiting.append(QUOTE * (quotes % 2))
            chunk = newline + after
            dropping = False
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield _checked(b"".join([*waiting, chunk[:cut]]))
            waiting, size = [], 0
        rest = chunk[cut:]
        if rest:
            waiting.append(rest)
            size += len(rest)
        if size > 2 * MAX_LINE_BYTES and size > CHUNK_BYTES:
            # Still longer than the limit, so that ``_checked`` finds it.
            text = b"".join(waiting)
            waiting = [text[: MAX_LINE_BYTES + 1]]
            size = len(waiting[0])
            quotes = text.count(QUOTE, MAX_LINE_BYTES + 1)
            dropping = True
    if dropping:
        waiting.append(QUOTE * (quotes % 2))
    if waiting:
        yield _checked(b"".join(waiting))


def _checked(text: bytes) -> Lines:
    """Whole lines with the overlong ones among them cut off at the limit."""
    starts = _overlong_starts(text)
    if not starts:
        return Lines(text)
    kept: list[bytes] = []
    overlong = []
    copied = 0
    for start in starts:
        overlong.append(text.count(b"\n", 0, start))
        kept.append(text[copied : start + MAX_LINE_BYTES])
        end = text.find(b"\n", start)
        copied = len(text) if end < 0 else end
        kept.append(QUOTE * (text.count(QUOTE, start + MAX_LINE_BYTES, copied) % 2))
    return Lines(b"".join([*kept, text[copied:]]), tuple(overlong))


def _overlong_starts(text: bytes) -> list[int]:
    """Where the lines begin that are longer than the limit."""
    starts = []
    start = 0
    while len(text) - start > MAX_LINE_BYTES:
        # Jumps to the last line end within the limit; there is none only in an overlong line.
        end = text.rfind(b"\n", start, start + MAX_LINE_BYTES + 1)
        if end < 0:
            starts.append(start)
            end = text.find(b"\n", start)
            if end < 0:
                break
        start = end + 1
    return starts
