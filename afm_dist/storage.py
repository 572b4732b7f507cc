"""Files on local disks and object stores behind a few functions.

A *location* is a string: a local path, or a URI that ``pyarrow.fs`` understands (``file://``,
``s3://``, ``gs://``). Writes are atomic: a reader sees the whole new file or none of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from pyarrow import ArrowInvalid
from pyarrow import fs as pafs

from afm_dist.errors import DataError, OptionError

TEMPORARY_SUFFIX = ".tmp"
COPY_BYTES = 1 << 22


def is_uri(location: str) -> bool:
    """Whether the location names a file system (``s3://bucket/key``) rather than a local path."""
    return "://" in location


def is_local(location: str) -> bool:
    """Whether the location is on this machine's own file system."""
    return not is_uri(location) or location.startswith("file://")


def local_path(location: str) -> Path:
    """The local path of a local location.

    Raises:
        ValueError: the location is on an object store.
    """
    if location.startswith("file://"):
        return Path(unquote(location.removeprefix("file://")))
    if is_uri(location):
        raise ValueError(f"{location} is not a local path")
    return Path(location)


def join(location: str, *parts: str) -> str:
    """The location of something below ``location``."""
    return "/".join([location.rstrip("/"), *parts]) if parts else location


def absolute(location: str) -> str:
    """The same location, independent of the working directory."""
    return location if is_uri(location) else str(Path(location).expanduser().resolve())


def file_system(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system that a URI names, and the path on it.

    Raises:
        OptionError: there is none of that name.
    """
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except ArrowInvalid as error:
        raise OptionError(f"{uri}: {error}; give a path, or a URI such as s3://BUCKET/FOLDER") from error
    return filesystem, path


def exists(location: str) -> bool:
    """Whether a file or folder is there."""
    if is_local(location):
        return local_path(location).exists()
    filesystem, path = file_system(location)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def read_bytes(location: str) -> bytes:
    """The whole content of one file.

    Raises:
        DataError: there is no such file.
    """
    try:
        if is_local(location):
            return local_path(location).read_bytes()
        filesystem, path = file_system(location)
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"{location}: no such file; check the path") from error


def write_bytes(location: str, data: bytes | memoryview) -> None:
    """Write a file so that it appears whole or not at all.

    Locally: written beside its final name, flushed to disk, renamed. On an object store a
    single put is atomic by itself.
    """
    if is_local(location):
        with open_write(location) as file:
            file.write(data)
        return
    filesystem, path_name = file_system(location)
    with filesystem.open_output_stream(path_name) as stream:
        stream.write(data)


@contextmanager
def open_write(location: str) -> Iterator[BinaryIO]:
    """A file to write piece by piece, which appears whole or, after an error, not at all.

    On an object store the pieces are collected in a local temporary file first: there an
    interrupted upload could become a file.
    """
    if not is_local(location):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            filesystem, path_name = file_system(location)
            with filesystem.open_output_stream(path_name) as stream:
                shutil.copyfileobj(file, stream, COPY_BYTES)
        return
    path = local_path(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # A full disk, for example, does not say which.
            error.filename = str(path)
        raise


def read_json(location: str) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(read_bytes(location))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{location}: not valid JSON ({error}); the file is damaged, make it again"
        ) from error


def write_json(location: str, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    write_bytes(location, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def plain(value: Any) -> Any:
    """A value as it comes back from JSON: tuples as lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def json_line(value: Any) -> str:
    """A value as one line of JSON."""
    return json.dumps(value, allow_nan=False)


def list_names(location: str) -> list[str]:
    """Sorted names of what lies directly in a folder; empty when the folder does not exist."""
    if is_local(location):
        path = local_path(location)
        return sorted(child.name for child in path.iterdir()) if path.is_dir() else []
    filesystem, path_name = file_system(location)
    selector = pafs.FileSelector(path_name, allow_not_found=True)
    return sorted(info.base_name for info in filesystem.get_file_info(selector))


def list_sizes(location: str) -> dict[str, int]:
    """Bytes of the files directly in a folder, by name; empty when the folder does not exist."""
    if is_local(location):
        path = local_path(location)
        children = path.iterdir() if path.is_dir() else ()
        return {child.name: child.stat().st_size for child in children if child.is_file()}
    filesystem, path_name = file_system(location)
    infos = filesystem.get_file_info(pafs.FileSelector(path_name, allow_not_found=True))
    return {info.base_name: int(info.size) for info in infos if info.type == pafs.FileType.File}


def size(location: str) -> int:
    """Bytes of one file.

    Raises:
        DataError: there is no such file.
    """
    if not exists(location):
        raise DataError(f"{location}: no such file; check the path")
    if is_local(location):
        return local_path(location).stat().st_size
    filesystem, path = file_system(location)
    return int(filesystem.get_file_info(path).size)


def copy(source: str, target: str) -> None:
    """Copy a folder's files (not its subfolders) to another folder, each atomically."""
    for name in list_names(source):
        if is_local(source) and local_path(join(source, name)).is_dir():
            continue
        write_bytes(join(target, name), read_bytes(join(source, name)))


def remove(location: str) -> None:
    """Delete a file, or a folder with all it holds; nothing happens when it is not there."""
    if is_local(location):
        path = local_path(location)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return
    filesystem, path_name = file_system(location)
    kind = filesystem.get_file_info(path_name).type
    if kind == pafs.FileType.Directory:
        filesystem.delete_dir(path_name)
    elif kind == pafs.FileType.File:
        filesystem.delete_file(path_name)


def remove_temporaries(location: str) -> None:
    """Delete what an interrupted ``write_bytes`` left in a folder."""
    for name in list_names(location):
        if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX):
            remove(join(location, name))


def sha256(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(location: str) -> str:
    """Hexadecimal SHA-256 of one file, read in pieces."""
    digest = hashlib.sha256()
    local = (pafs.LocalFileSystem(), str(local_path(location))) if is_local(location) else None
    filesystem, path = local or file_system(location)
    try:
        with filesystem.open_input_stream(path) as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    except FileNotFoundError as error:
        raise DataError(f"{location}: no such file; check the path") from error
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON-serialisable value, independent of key order."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
