"""What differs between two records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.frozen.digests import Entry

Parts = Mapping[str, Mapping[str, Entry]]
MOST_LEAVES = 6
MOST_LINES = 40


@dataclass(kw_only=True)
class Differences:
    """Between two records, by part.

    Attributes:
        changed: Lines that say what has another value.
        missing: Entries of the first alone.
        new: Entries of the second alone.
        moved: Entries whose value has another name in the second.
    """

    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether a value is not what it was; one that only moved is."""
        return bool(self.changed or self.missing or self.new)

    def lines(self, most: int = MOST_LINES) -> Iterator[str]:
        """For the terminal: so many of each kind."""
        for word, found in (
            ("changed", self.changed),
            ("missing", self.missing),
            ("new", self.new),
            ("moved", self.moved),
        ):
            for line in found[:most]:
                yield f"  {word:8} {line}"
            if len(found) > most:
                yield f"  {word:8} … and {len(found) - most} more"


def differences(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> Differences:
    """Of one part."""
    found = Differences()
    for name in before:
        if name in after and before[name]["sha256"] != after[name]["sha256"]:
            found.changed.append(f"{name}: {_how(before[name], after[name])}")
    gone = defaultdict(list)
    for name in before.keys() - after.keys():
        gone[before[name]["sha256"]].append(name)
    for name in sorted(after.keys() - before.keys()):
        earlier = gone[after[name]["sha256"]]
        if earlier:
            found.moved.append(f"{earlier.pop()} -> {name}")
        else:
            found.new.append(name)
    found.missing = sorted(name for names in gone.values() for name in names)
    return found


def _how(before: Entry, after: Entry) -> str:
    if "norm" in before and "norm" in after:
        if before["shape"] != after["shape"]:
            return f"{before['shape']} -> {after['shape']}"
        return f"norm {before['norm']} -> {after['norm']}"
    if "content" in before and "content" in after:
        leaves = list(_leaves(before["content"], after["content"], ""))
        more = f"; and {len(leaves) - MOST_LEAVES} more" if len(leaves) > MOST_LEAVES else ""
        return "; ".join(leaves[:MOST_LEAVES]) + more
    return f"{before['sha256'][:12]} -> {after['sha256'][:12]}"


def _leaves(before: Any, after: Any, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _leaves(before.get(key, "(none)"), after.get(key, "(none)"), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _leaves(old, new, f"{where}[{i}]")
    elif isinstance(before, str) and isinstance(after, str) and "\n" in before + after:
        yield from _leaves(before.splitlines(), after.splitlines(), where)
    elif before != after:
        yield f"{where.removeprefix('.')} {_short(before)} -> {_short(after)}".strip()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
