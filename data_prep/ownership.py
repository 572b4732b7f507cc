"""Whose files an output folder holds: a preparation clears only what a preparation wrote.

That a folder is a dataset of ours is proven by what only we write: a manifest that is understood, the record
of a finished preparation, or the work directory of an interrupted one. Names prove nothing. Within a folder
that is proven ours, what no preparation writes is somebody's still, and is never cleared.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowException
from pyarrow import fs as pafs

from afm_dist import storage
from afm_dist.dataset.manifest import FILE_NAME, Manifest
from afm_dist.dataset.vocabulary_file import COLUMNS
from afm_dist.errors import DataError
from data_prep.rejected import foreign_rejected
from data_prep.split import SPLITS
from data_prep.work import DRIVER, FOLDER, PLAN, is_plan, is_work_directory

RECORD = "prepare.json"
REJECTED = "rejected"
RAW = "raw"
PAGE = "describe.html"
VOCABULARY = "vocabulary"
IN_WORK = (
    PLAN,
    DRIVER,
    "scan",
    "parse",
    "spool",
    "vocabulary",
    "count-ranges",
    "assign-ranges",
    "join-ranges",
    "ranges",
    "maps",
    "encode",
    "runs",
    "shuffle",
)
_SHARD = re.compile(r"part-\d{5,}\.parquet")


def foreign_files(output: str) -> list[str]:
    """Find what a folder holds that no preparation wrote.

    A raw log in ``raw`` is nobody's concern here: a preparation does not clear it.

    Args:
        output: The dataset directory to be.

    Returns:
        Paths within the folder, in order; none: all that a preparation clears there is its own.

    Raises:
        StorageError: the folder cannot be read.
    """
    entries = [entry for entry in storage.list_infos(output) if not storage.is_temporary(entry.base_name)]
    names = [entry.base_name for entry in entries]
    work = storage.join(output, FOLDER)
    manifest = read_manifest(output) if FILE_NAME in names else None
    if manifest is None and read_record(output) is None and not is_work_directory(work):
        # A work directory without anything in it: its first write was interrupted.
        ours = {RAW} if _names(work) else {RAW, FOLDER}
        return [name for name in names if name not in ours]
    foreign: list[str] = []
    for entry in entries:
        name, is_folder = entry.base_name, entry.type == pafs.FileType.Directory
        if name in (FOLDER, REJECTED, VOCABULARY, *SPLITS) and is_folder:
            inside = _foreign_inside(storage.join(output, name), name, manifest)
            foreign += [f"{name}/{each}" for each in inside]
        elif name != RAW and (name not in (FILE_NAME, RECORD, PAGE) or is_folder):
            foreign.append(name)
    return foreign


def _foreign_inside(location: str, folder: str, manifest: Manifest | None) -> list[str]:
    """Names of what lies in a folder of a dataset, and is not of it."""
    if folder == REJECTED:
        return foreign_rejected(location)
    names = _names(location)
    if folder == FOLDER:
        return [name for name in names if name not in IN_WORK]
    if manifest is not None:
        files = manifest.vocabulary.values() if folder == VOCABULARY else manifest.splits.get(folder, ())
        listed = {file.path for file in files}
        return [name for name in names if f"{folder}/{name}" not in listed]
    if folder == VOCABULARY:
        return [name for name in names if not _is_vocabulary(storage.join(location, name))]
    return [name for name in names if not _SHARD.fullmatch(name)]


def _names(location: str) -> list[str]:
    """What lies in a folder, without what an interrupted write left."""
    return [name for name in storage.list_names(location) if not storage.is_temporary(name)]


def _is_vocabulary(location: str) -> bool:
    """Whether a file has the columns of a vocabulary, and no others."""
    try:
        with storage.open_read(location) as raw, pq.ParquetFile(raw) as file:
            return list(file.schema_arrow.names) == list(COLUMNS)
    except (ArrowException, OSError, DataError):
        return False


def read_manifest(output: str) -> Manifest | None:
    """The manifest of a dataset directory; None where there is none that is understood.

    Args:
        output: The dataset directory.
    """
    try:
        return Manifest.load(output)
    except DataError:
        return None


def read_record(output: str) -> dict[str, Any] | None:
    """What a finished preparation depended on, as it recorded it; None where no such record is.

    Args:
        output: The dataset directory.
    """
    try:
        record = storage.read_json(storage.join(output, RECORD), dict[str, Any])
    except DataError:
        return None
    return record if is_plan(record) else None
