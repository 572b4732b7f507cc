"""A dataset's description as JSON, for reports that are passed around: figures, no tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from afm_dist import storage
from afm_dist.dataset.description import (
    Description,
)

FORMAT_VERSION = 1


def to_json(description: Description) -> dict[str, Any]:
    """As plain values, without the most frequent tokens: they are what the log holds, not how much."""
    nameless = tuple(replace(field, top=()) for field in description.categorical)
    content = storage.plain(asdict(replace(description, categorical=nameless)))
    return {"format_version": FORMAT_VERSION, **content}


def from_json(content: Mapping[str, Any], *, source: str) -> Description | None:
    """Read the description again; None for one of another version, which a report can do without.

    Args:
        content: What ``to_json`` gave.
        source: Where it was found, for messages.

    Raises:
        DataError: something is missing, or there is something unknown.
    """
    if content.get("format_version") != FORMAT_VERSION:
        return None
    found = {key: value for key, value in content.items() if key != "format_version"}
    return storage.as_typed(
        found, Description, source=f"{source}: the description of the data", fix="make the report again"
    )
