"""Entries of low rank as plans of format version 1 have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afm_dist.compression.plan import PlanEntry
from afm_dist.methods.low_rank.config import LowRank


def read_version_1(value: Mapping[str, Any]) -> tuple[PlanEntry, ...]:
    """Read ``{"name", "method", "rank", …}`` from a plan's ``entries``.

    Raises:
        ValueError, TypeError, KeyError: it is no such plan.
    """
    unknown = sorted(set(value) - {"format_version", "entries", "bfloat16"})
    if unknown:
        raise ValueError(f"a plan has no field {unknown[0]!r}")
    return tuple(_entry(**entry) for entry in value["entries"])


def _entry(*, name: str, method: Any, **config: Any) -> PlanEntry:
    try:
        return PlanEntry(name, LowRank(factors=method, **config))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
