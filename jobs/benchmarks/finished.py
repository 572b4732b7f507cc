"""Where a benchmark keeps what it has finished, so that it is not done again."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from afm_dist import storage
from afm_dist.runs.run import environment

PACKAGES = ("afm_dist", "data_prep", "jobs")


@cache
def revision() -> str:
    """Of the sources that this process began with, whatever is committed while it works."""
    return str(environment()["git_revision"])


@cache
def sources() -> str:
    """A digest of them, committed or not, as this process began."""
    root = Path(__file__).parents[2]
    files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
    return storage.fingerprint({str(file.relative_to(root)): file.read_text("utf-8") for file in files})


def folder_of(output: str, facts: Any) -> str:
    """A folder of its own for everything that the result depends on; the sources are among it.

    Args:
        output: Of the benchmark.
        facts: JSON-serialisable.
    """
    return storage.join(output, storage.fingerprint({"facts": facts, "sources": sources()})[:16])
