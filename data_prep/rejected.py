"""Malformed rows on disk: file, line, reason and text of each."""

from __future__ import annotations

from dataclasses import asdict

from afm_dist import storage
from data_prep.sources.source import Rejected

REJECTED_PER_FILE = 10_000


class RejectedRows:
    """Malformed rows of one block as lines of JSON, in files of bounded size.

    Args:
        folder: Where they go.
        block: Index of the block, for the names of the files.
        plan: What else is in these names, so that no task of another plan writes to the same file.
    """

    def __init__(self, folder: str, block: int, *, plan: str = "") -> None:
        self.folder = folder
        self.name = f"part-{plan}{'-' if plan else ''}{block:05d}"
        self.files = 0
        self._lines: list[str] = []

    def add(self, path: str, bad: Rejected) -> None:
        """One more row of the input file ``path``."""
        self._lines.append(storage.json_line({"file": path, **asdict(bad)}) + "\n")
        if len(self._lines) >= REJECTED_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write those that wait."""
        if self._lines:
            name = f"{self.name}-{self.files:03d}.jsonl"
            storage.write_bytes(storage.join(self.folder, name), "".join(self._lines).encode())
            self.files += 1
            self._lines = []
