"""Malformed rows on disk: file, line, reason and text of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pyarrow import fs as pafs

from afm_dist import storage
from afm_dist.errors import DataError
from data_prep.sources.source import Rejected

REJECTED_PER_FILE = 10_000
REJECTED_SHOWN = 10
_NAME = re.compile(r"part-([0-9a-f]+-)?\d{5,}-\d{3,}\.jsonl")


def foreign_rejected(folder: str) -> list[str]:
    """Names of what lies in a folder and is no file of malformed rows that a job wrote.

    Args:
        folder: Where a job keeps its malformed rows.
    """
    foreign = []
    for entry in storage.list_infos(folder):
        name = entry.base_name
        if not storage.is_temporary(name) and not _is_of_rejected(storage.join(folder, name), name, entry):
            foreign.append(name)
    return foreign


def _is_of_rejected(location: str, name: str, entry: pafs.FileInfo) -> bool:
    if entry.type != pafs.FileType.File or not _NAME.fullmatch(name):
        return False
    with storage.open_read(location) as file:
        first = file.readline()
    try:
        storage.parse_json(first, _Line, source=location)
    except DataError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class _Line(Rejected):
    """A malformed row as it is kept."""

    file: str


class RejectedRows:
    """Malformed rows of one block as lines of JSON, in files of bounded size.

    Args:
        folder: Where they go.
        block: Index of the block, for the names of the files.
        path: The input file that it is of.
        plan: What else is in these names, so that no task of another plan writes to the same file.

    Attributes:
        count: Number of them.
        offenders: The first of them, as ``file:line reason``.
    """

    def __init__(self, folder: str, block: int, path: str, *, plan: str = "") -> None:
        self.folder = folder
        self.path = path
        self.count = 0
        self.offenders: list[str] = []
        self.name = f"part-{plan}{'-' if plan else ''}{block:05d}"
        self.files = 0
        self._lines: list[str] = []

    def take(self, rows: Sequence[Rejected]) -> None:
        """Some more of the block."""
        self.count += len(rows)
        for bad in rows:
            if len(self.offenders) < REJECTED_SHOWN:
                self.offenders.append(f"{self.path}:{bad.line} {bad.reason}")
            self._lines.append(storage.json_line({"file": self.path, **asdict(bad)}) + "\n")
            if len(self._lines) >= REJECTED_PER_FILE:
                self.flush()

    def check(self, most: int) -> None:
        """End the job early.

        Raises:
            DataError: there are more than ``most``.
        """
        if self.count > most:
            self.flush()
            raise DataError(
                f"{self.path}: {self.count:,} rows are malformed, more than --max-bad-rows allows in the "
                f"whole input; the first: {'; '.join(self.offenders)}; those up to here are in {self.folder}"
            )

    def flush(self) -> None:
        """Write those that wait."""
        if self._lines:
            name = f"{self.name}-{self.files:03d}.jsonl"
            storage.write_bytes(storage.join(self.folder, name), "".join(self._lines).encode())
            self.files += 1
            self._lines = []
