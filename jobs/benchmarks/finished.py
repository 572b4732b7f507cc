"""Where a benchmark keeps what it has finished, so that it is not done again."""

from __future__ import annotations

from functools import cache
from typing import Any

from afm_dist import storage
from afm_dist.runs import environment


@cache
def revision() -> str:
    """Of the sources that this process began with, whatever is committed while it works."""
    return str(environment()["git_revision"])


def folder_of(output: str, facts: Any) -> str:
    """A folder of its own for everything that the result depends on; the sources' revision is among it.

    Args:
        output: Of the benchmark.
        facts: JSON-serialisable.
    """
    return storage.join(output, storage.fingerprint({"facts": facts, "revision": revision()})[:16])
