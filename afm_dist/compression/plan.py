"""The compression plan: what becomes of which module, in order. Small enough to review in a pull request.

A plan knows no method: an entry names a module and holds a method's config. Applying a plan's structure
needs no data, so a checkpoint carries its plan and is rebuilt from it. Entries compose: a later one may
name what an earlier one made.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from afm_dist import storage
from afm_dist.compression.config import MethodConfig
from afm_dist.compression.registry import config_type, earlier_readers
from afm_dist.errors import DataError, OptionError

FORMAT_VERSION = 2

# What all architectures here name their fused table.
TABLE = "embedding"


@dataclass(frozen=True)
class PlanEntry:
    """One module and what becomes of it.

    Attributes:
        name: Of the module, as in ``model.named_modules()`` once all entries before this one are applied.
        config: The method, and how it is applied.
    """

    name: str
    config: MethodConfig

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise OptionError(f"a plan names module {self.name!r}: the name of a module is needed")
        if not isinstance(self.config, MethodConfig):
            raise OptionError(
                f"config of {self.name} is a {type(self.config).__name__}: the config of a method is needed"
            )

    @property
    def rank(self) -> int:
        """Give the rank of a config that has one.

        Raises:
            AttributeError: the method has no such thing.
        """
        rank: int = self.config.rank  # type: ignore[attr-defined]
        return rank

    def to_json(self) -> dict[str, Any]:
        """Give the entry as plain values."""
        return {
            "module": self.name,
            "method": self.config.tag,
            "version": self.config.version,
            "config": self.config.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do to a model.

    Attributes:
        entries: Modules and what becomes of them, in the order in which they are applied.
        left_alone: Modules that were asked for and stay as they are, and why; only for whoever has the plan
            made: it is no part of what is written, nor of equality.
    """

    entries: tuple[PlanEntry, ...] = ()
    left_alone: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __add__(self, other: Plan) -> Plan:
        """Give first this plan, then the other."""
        return Plan(entries=self.entries + other.entries, left_alone={**self.left_alone, **other.left_alone})

    @property
    def modules(self) -> list[str]:
        """List the names of all modules that it changes, each once."""
        return list(dict.fromkeys(entry.name for entry in self.entries))

    def to_json(self) -> dict[str, Any]:
        """Give the plan as plain values."""
        return {"format_version": FORMAT_VERSION, "entries": [entry.to_json() for entry in self.entries]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, source: str = "plan") -> Plan:
        """Read a plan from plain values, of this version or an earlier one.

        Raises:
            DataError: an unknown version, method or field, named with the entry.
        """
        version = value.get("format_version") if isinstance(value, Mapping) else None
        if version == FORMAT_VERSION and type(version) is int:
            return cls(entries=_entries(value, source))
        readers = earlier_readers()
        if type(version) is not int or version not in readers:
            raise DataError(f"{source}: plan format version {reprlib.repr(version)} is unknown")
        try:
            return cls(entries=tuple(readers[version](value)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: plan not understood ({error})") from error

    def save(self, location: str) -> None:
        """Write as JSON."""
        storage.write_json(location, self.to_json())

    @classmethod
    def load(cls, location: str) -> Plan:
        """Read from JSON.

        Raises:
            DataError: no such file, not a plan, or one that was altered since it came with a checkpoint.
        """
        folder, _, name = location.rpartition("/")
        sums = storage.Checksums.load(folder or ".", again="to use another plan, copy it to another folder")
        if sums is not None and name in sums.sha256:
            sums.check(name)
        return cls.from_json(storage.read_json(location, dict[str, Any]), source=location)


_KEYS = {"module", "method", "version", "config"}


def _entries(value: Mapping[str, Any], source: str) -> tuple[PlanEntry, ...]:
    unknown = sorted(set(value) - {"format_version", "entries"})
    if unknown:
        raise DataError(f"{source}: a plan has no field {unknown[0]!r}")
    entries = value.get("entries")
    if not isinstance(entries, list):
        raise DataError(f"{source}: plan not understood (its entries are no list)")
    found = []
    for i, entry in enumerate(entries):
        named = (
            f" ({reprlib.repr(entry['module'])})" if isinstance(entry, Mapping) and "module" in entry else ""
        )
        where = f"{source}, entry {i}{named}"
        if not isinstance(entry, Mapping) or set(entry) != _KEYS:
            raise DataError(f"{where}: an entry has {', '.join(sorted(_KEYS))}, and nothing else")
        kind = config_type(entry["method"], source=where)
        if type(entry["version"]) is not int or entry["version"] != kind.version:
            raise DataError(
                f"{where}: version {reprlib.repr(entry['version'])} of method {kind.tag!r} is unknown (this "
                f"release reads {kind.version})"
            )
        config = kind.from_json(entry["config"], source=where)
        try:
            found.append(PlanEntry(entry["module"], config))
        except OptionError as error:
            raise DataError(f"{where}: {error}") from error
    return tuple(found)
