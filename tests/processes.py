"""Processes that a process of a test's own has started; never those of others on the machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

GENERATIONS = 5


def descendants(process: int) -> dict[int, str]:
    """Processes below one, and their titles, such as Ray's ``ray::RayTrainWorker``."""
    parents, titles = {}, {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(folder.name)] = (folder / "cmdline").read_text()
    below = {process}
    for _ in range(GENERATIONS):
        below |= {child for child, parent in parents.items() if parent in below}
    return {child: titles[child] for child in below - {process} if child in titles}
