"""Reading, writing, listing and removing files, wherever they lie; every write is atomic."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, cast

from pyarrow import fs as pafs

from afm_dist.errors import DataError, StorageError
from afm_dist.storage.location import is_local, join, local_path
from afm_dist.storage.object_store import RemoteFile, Upload, connect, reaching

TEMPORARY_SUFFIX = ".tmp"
# What ``new_file`` calls a file that is being written.
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]+{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
COPY_BYTES = 16 << 20
# Fetched at once from an object store, where a request takes as long as reading a megabyte or two.
READ_BYTES = 4 << 20
SPECIAL = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# The largest object that S3 copies by itself.
MAX_COPIED_BYTES = 5 << 30
# Who wants to know the digests of what is written now.
_RECORDS: ContextVar[tuple[dict[str, str], ...]] = ContextVar("records", default=())


def file_system(location: str) -> tuple[pafs.FileSystem, str]:
    """Resolve a location for libraries that want a file system of Arrow's and a path on it.

    Raises:
        OptionError: there is no such file system.
        StorageError: it cannot be reached, or has no such bucket.
    """
    if is_local(location):
        return pafs.LocalFileSystem(), str(local_path(location))
    return connect(location)


def info(location: str) -> pafs.FileInfo:
    """Look up type, size and time of change of what is there; the type ``NotFound`` where nothing is.

    Raises:
        StorageError: it cannot be found out.
    """
    filesystem, path = file_system(location)
    with reaching(location):
        return filesystem.get_file_info(path)


def exists(location: str) -> bool:
    """Return whether a file or folder is there."""
    return bool(info(location).type != pafs.FileType.NotFound)


def is_file(location: str) -> bool:
    """Return whether a file is there."""
    return bool(info(location).type == pafs.FileType.File)


def is_folder(location: str) -> bool:
    """Return whether a folder is there; on an object store, whether anything lies below that name."""
    return bool(info(location).type == pafs.FileType.Directory)


def size(location: str) -> int:
    """Return the size of one file, in bytes.

    Raises:
        DataError: there is no such file.
    """
    found = info(location)
    if found.type != pafs.FileType.File:
        raise DataError(f"{location}: no such file; check the path")
    return int(found.size)


def read_bytes(location: str) -> bytes:
    """Read the whole content of one file.

    Raises:
        DataError: there is no such file.
    """
    if is_local(location):
        path = _not_special(location)
        with reaching(location):
            return path.read_bytes()
    with RemoteFile(*connect(location), location) as file:
        return file.readall()


def open_read(location: str, buffer_bytes: int = READ_BYTES) -> BinaryIO:
    """Open a seekable file to read piece by piece.

    Args:
        location: The file.
        buffer_bytes: What is fetched at once from an object store, at least.

    Raises:
        DataError: there is no such file.
    """
    if is_local(location):
        path = _not_special(location)
        with reaching(location):
            return path.open("rb")
    file = RemoteFile(*connect(location), location)
    return io.BufferedReader(file, buffer_bytes)


@contextmanager
def local_copy(location: str) -> Iterator[Path]:
    """Provide a file on a local disk: itself, or a temporary copy (in ``TMPDIR``).

    Raises:
        DataError: there is no such file.
    """
    if is_local(location):
        yield _not_special(location)
        return
    with tempfile.TemporaryDirectory(prefix="afm-dist-") as folder:
        path = Path(folder, "copy")
        with open_read(location, COPY_BYTES) as source, path.open("wb") as target, _filling(str(path)):
            shutil.copyfileobj(source, target, COPY_BYTES)
        yield path


def _not_special(location: str) -> Path:
    """Return the path of a local file, which is not a pipe to wait for, nor a device without an end.

    Raises:
        DataError: there is no such file, or it is no regular one.
    """
    path = local_path(location)
    with reaching(location):
        mode = path.stat().st_mode
    for is_kind, kind in SPECIAL.items():
        if is_kind(mode):
            raise DataError(f"{location}: {kind} instead of a file; put the file itself there")
    return path


@contextmanager
def recording_digests() -> Iterator[dict[str, str]]:
    """Record the SHA-256 of each file that this thread writes within the context, by location.

    They are taken of what is written, not of what the disk makes of it.
    """
    record: dict[str, str] = {}
    token = _RECORDS.set((*_RECORDS.get(), record))
    try:
        yield record
    finally:
        _RECORDS.reset(token)


def _record(location: str, digest: str) -> None:
    for record in _RECORDS.get():
        record[location] = digest


def _forget(location: str) -> None:
    for record in _RECORDS.get():
        for known in [each for each in record if each == location or each.startswith(f"{location}/")]:
            del record[known]


class _Hashed(io.RawIOBase):
    """A file that is written, with the digest of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._file.tell()

    def write(self, data: Any) -> int:
        """Write some bytes."""
        self.digest.update(data)
        return self._file.write(data)


@contextmanager
def _recorded(file: BinaryIO, location: str) -> Iterator[BinaryIO]:
    """Return the file, or one that notes the digest for those who record."""
    if not _RECORDS.get():
        yield file
        return
    hashed = _Hashed(file)
    yield cast(BinaryIO, hashed)
    _record(location, hashed.digest.hexdigest())


def write_bytes(location: str, data: bytes | memoryview) -> None:
    """Write a file so that it appears whole or not at all."""
    with open_write(location) as file:
        file.write(data)


@contextmanager
def open_write(location: str) -> Iterator[BinaryIO]:
    """Open a file to write piece by piece, which appears whole or, after an error, not at all.

    Locally: written beside its final name, flushed to disk, renamed. On an object store: sent while it
    is written, completed in the end.

    Raises:
        StorageError: it cannot be written.
    """
    if is_local(location):
        with (
            _new_local_file(location) as path,
            _opened(path, location) as file,
            _recorded(file, location) as to,
        ):
            yield to
        return
    upload = Upload(*connect(location), location)
    try:
        with _recorded(cast(BinaryIO, upload), location) as to:
            yield to
        upload.commit()
    finally:
        upload.close()


@contextmanager
def new_file(location: str) -> Iterator[Path]:
    """Provide a local path to write a file to; what is there in the end appears as by ``open_write``.

    Raises:
        StorageError: it cannot be written.
    """
    if not is_local(location):
        with tempfile.TemporaryDirectory(prefix="afm-dist-") as folder:
            path = Path(folder, "new")
            with _filling(str(path)):
                yield path
            with path.open("rb") as source, open_write(location) as target:
                shutil.copyfileobj(source, target, COPY_BYTES)
        return
    with _new_local_file(location) as path:
        yield path
        if _RECORDS.get():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            _record(location, digest)


@contextmanager
def _new_local_file(location: str) -> Iterator[Path]:
    """Do as ``new_file``, on a local disk."""
    final = local_path(location)
    path = final.with_name(f".{final.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with _writing(location):
            final.parent.mkdir(parents=True, exist_ok=True)
        with _filling(location):
            yield path
        with _writing(location):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(final)
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _opened(path: Path, location: str) -> Iterator[BinaryIO]:
    with _writing(location):
        file = path.open("wb")
    with file:
        yield file


@contextmanager
def _writing(location: str) -> Iterator[None]:
    """Name this place in errors of the operating system within the context."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _refused(location, error.errno) from error


@contextmanager
def _filling(location: str) -> Iterator[None]:
    """Name this place in errors of a full or failed disk within the context, unless they name another."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _number_in(str(error))
        known = isinstance(error, StorageError) or getattr(error, "filename", None)
        if number not in DISK_ERRORS or known:
            raise
        raise _refused(location, number) from error


def _number_in(text: str) -> int | None:
    """Find the error number in a message of a library in Rust, such as safetensors."""
    found = re.search(r"\(os error (\d+)\)", text)
    return int(found[1]) if found else None


def _refused(location: str, number: int | None) -> StorageError:
    reason = "an error without a number" if number is None else os.strerror(number)
    return StorageError(
        f"{location}: cannot be written ({reason}); check the folder and the space left for it, then run the "
        "same command to go on",
        number,
    )


def list_infos(location: str) -> list[pafs.FileInfo]:
    """List what lies directly in a folder, by name; nothing when the folder does not exist."""
    filesystem, path = file_system(location)
    # Of a folder that is but the beginning of its files' names, Google's client does not tell.
    deep = filesystem.type_name == "gcs"
    with reaching(location):
        try:
            selector = pafs.FileSelector(path, allow_not_found=True, recursive=deep)
            infos = filesystem.get_file_info(selector)
        except (FileNotFoundError, NotADirectoryError):  # the first: it went while it was listed
            return []
    if deep:
        infos = _children(path, infos)
    return sorted(infos, key=lambda each: str(each.base_name))


def _children(folder: str, below: list[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """Select of all that lies below a folder what lies in it: files, and the folders of the others."""
    children = {}
    for each in below:
        name, _, deeper = each.path.removeprefix(f"{folder}/").partition("/")
        path = f"{folder}/{name}"
        children[name] = pafs.FileInfo(path, pafs.FileType.Directory) if deeper else each
    return list(children.values())


def list_names(location: str) -> list[str]:
    """List the names of what lies directly in a folder, sorted; empty when the folder does not exist."""
    return [info.base_name for info in list_infos(location)]


def list_sizes(location: str) -> dict[str, int]:
    """List the bytes of the files directly in a folder, by name; empty when the folder does not exist."""
    files = (info for info in list_infos(location) if info.type == pafs.FileType.File)
    return {info.base_name: int(info.size) for info in files}


def list_files(location: str) -> list[str]:
    """List the paths of all files below a folder, relative to it, sorted; a link to a folder is a file."""
    if is_local(location):
        root = local_path(location)
        found = []
        for folder, folders, names in os.walk(root):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            found += [Path(folder, name).relative_to(root).as_posix() for name in [*names, *links]]
        return sorted(found)
    filesystem, path = connect(location)
    with reaching(location):
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    return sorted(each.path.removeprefix(f"{path}/") for each in infos if each.type == pafs.FileType.File)


def copy(source: str, target: str) -> None:
    """Copy a folder's files (not its subfolders) to another folder, each atomically."""
    for name in list_sizes(source):
        copy_file(join(source, name), join(target, name))


def copy_file(source: str, target: str) -> None:
    """Copy a file atomically, within an object store by the store itself.

    Raises:
        DataError: there is no such file.
    """
    by_the_store = not is_local(source) and not is_local(target) and not _RECORDS.get()
    if by_the_store and size(source) <= MAX_COPIED_BYTES:
        (filesystem, path), (other, other_path) = connect(source), connect(target)
        if filesystem is other:
            with reaching(target):
                filesystem.copy_file(path, other_path)
            return
    with open_read(source, COPY_BYTES) as old, open_write(target) as new:
        shutil.copyfileobj(old, new, COPY_BYTES)


def remove(location: str) -> None:
    """Delete a file, or a folder with all it holds; nothing happens when it is not there."""
    _forget(location)
    if is_local(location):
        path = local_path(location)
        with _writing(location):
            if path.is_dir() and not path.is_symlink():
                _remove_folder(path)
            else:
                path.unlink(missing_ok=True)
        return
    filesystem, path_name = connect(location)
    with reaching(location), suppress(FileNotFoundError):
        kind = filesystem.get_file_info(path_name).type
        if kind == pafs.FileType.Directory:
            # Google's store misses the folder itself, which it does not have, after all in it is gone.
            filesystem.delete_dir(path_name)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path_name)


def _remove_folder(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        if error.errno is not None:
            raise
        # So rmtree says that the folder was replaced while it looked, by another process's new one.
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is what an interrupted write left."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(location: str) -> None:
    """Delete what an interrupted write left in a folder; an object store hides that by itself."""
    if not is_local(location):
        return
    for name in filter(is_temporary, list_names(location)):
        remove(join(location, name))
