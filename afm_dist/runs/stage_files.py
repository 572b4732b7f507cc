"""Which files a stage left in its folder, so that clearing the folder deletes nobody else's.

Beside the stages, ``.stages/NAME.json`` lists the files of each one that was done. While a stage is under way
its folder is its own, with all that is in it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypedDict

from afm_dist import storage

FOLDER = ".stages"
DAMAGED = "see that the stage's folder holds no files of yours, then delete this file"


class Record(TypedDict):
    """What is recorded of a stage: its files; null: all that is in its folder."""

    files: list[str] | None


def record_begin(run: str, stage: str) -> None:
    """Record that a stage is under way, or that its folder is being cleared for it.

    Args:
        run: The run directory.
        stage: Name of the stage.
    """
    storage.write_json(_record(run, stage), Record(files=None))


def record_end(run: str, stage: str) -> None:
    """Record what a stage left.

    Args:
        run: The run directory.
        stage: Name of the stage.
    """
    storage.write_json(_record(run, stage), Record(files=storage.list_files(storage.join(run, stage))))


def record_added(run: str, stage: str, path: str) -> None:
    """Record a file that is about to be put into the folder of a stage that was done.

    Args:
        run: The run directory.
        stage: Name of the stage.
        path: Of the file, within the folder.
    """
    location = _record(run, stage)
    # Of an older release there is none: all that is in the folder counts as the stage's own.
    files = storage.read_json(location, Record, fix=DAMAGED)["files"] if storage.exists(location) else None
    if files is not None and path not in files:
        storage.write_json(location, Record(files=sorted([*files, path])))


def foreign_files(run: str, stage: str, *, markers: Collection[str]) -> list[str]:
    """Find what lies in the folder of a stage, and was not left there by the stage.

    Args:
        run: The run directory.
        stage: Name of the stage.
        markers: Names of the files that say how far the stage is; one of an older release has no record, and
            with one of them all that is in its folder counts as its own.

    Returns:
        Paths within the folder, in order.

    Raises:
        DataError: the record is damaged.
    """
    present = [
        path
        for path in storage.list_files(storage.join(run, stage))
        if not storage.is_temporary(path.rpartition("/")[2])
    ]
    files: list[str] | None
    if storage.exists(_record(run, stage)):
        files = storage.read_json(_record(run, stage), Record, fix=DAMAGED)["files"]
    else:
        files = None if any(path in markers for path in present) else []
    return [] if files is None else [path for path in present if path not in {*files, *markers}]


def _record(run: str, stage: str) -> str:
    return storage.join(run, FOLDER, f"{stage}.json")
