"""Paths that a file names: below a folder, or refused.

Whoever wrote a file decides what is in it, and a dataset or a checkpoint may come from anybody. So a path
that was read from one is checked here where the file is parsed, before it is opened, copied or written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from afm_dist.errors import DataError
from afm_dist.storage.location import is_local, local_path

_DRIVE = re.compile(r"[A-Za-z]:")


def check_inside(folder: str, paths: Iterable[object], *, source: str) -> None:
    """Refuse paths that do not stay below a folder.

    Args:
        folder: What the paths are relative to.
        paths: As they were read, with slashes between their parts.
        source: The file that names them, for messages.

    Raises:
        DataError: one is no text, is absolute, has a part that is empty, ``.`` or ``..``, a backslash, a NUL
            or a drive, or leads out of the folder by way of a link.
    """
    names: list[str] = []
    for path in paths:
        if fault := fault_of(path):
            raise _refused(source, path, fault)
        names.append(str(path))
    if is_local(folder):
        for path in names and _leading_out(local_path(folder), names):
            raise _refused(source, path, f"leads out of {folder} by way of a link")


def fault_of(path: object) -> str | None:
    """Explain what keeps a path from being a plain one below a folder; None: nothing does.

    Args:
        path: As it was read.
    """
    if not isinstance(path, str):
        return "is no text"
    if not path:
        return "is empty"
    if "\0" in path or (not path.isascii() and not _is_encodable(path)):
        return "holds a character that no path has"
    if "\\" in path:
        return "has a backslash"
    if path.startswith("/") or _DRIVE.match(path):
        return "is absolute"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "has a part that is empty, '.' or '..'"
    return None


def _is_encodable(path: str) -> bool:
    """Return whether a text is no half of a character, as JSON can hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _leading_out(folder: Path, paths: list[str]) -> list[str]:
    """Find the paths that a link leads out of a folder; each folder of theirs is listed once."""
    root = folder.resolve()
    by_parent: dict[str, list[str]] = {}
    for path in paths:
        by_parent.setdefault(path.rpartition("/")[0], []).append(path)
    out: list[str] = []
    for parent, within in by_parent.items():
        if not _is_below(root / parent, root):
            out += within
            continue
        links = _links(root / parent)
        named = (path for path in within if path.rpartition("/")[2] in links)
        out += [path for path in named if not _is_below(root / path, root)]
    return out


def _is_below(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):
        # Links in a circle.
        return False


def _links(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        # It is not there: who reads it says so.
        return set()


def _refused(source: str, path: object, fault: str) -> DataError:
    return DataError(
        f"{source}: damaged or tampered with: it names the path {path!r}, which {fault}, instead of a file "
        "in its own folder; do not use it, get or make it again"
    )
