"""The compression plan: which module becomes what. Small enough to review in a pull request.

Applying a plan's structure needs no data, so a checkpoint carries its plan and is rebuilt from
it. Entries are in the order in which they were applied.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from afm_dist import storage
from afm_dist.errors import DataError, OptionError

FORMAT_VERSION = 1

Activation = Literal["none", "plain", "shifted"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

# How many standard deviations below the mean score the shifted ReLU starts to cut.
DEFAULT_KAPPA = 2.0

# Each has a class in ``methods.py``.
Method = Literal["afm", "svd", "weighted"]
METHODS: tuple[Method, ...] = get_args(Method)

# What all architectures here name their fused table.
TABLE = "embedding"

# Whether the fields of a table have one rank in common, or each its own.
FieldRanks = Literal["uniform", "each"]

# What entries did not have in the first releases.
_LATER = ("ranks", "absorbs")


@dataclass(frozen=True, kw_only=True)
class PlanEntry:
    """One module and what becomes of it.

    Attributes:
        name: Module name as in ``model.named_modules()``.
        method: Where the factors come from.
        rank: K, the inner width (layers) or code width (tables); with ``ranks`` the largest of them.
        ranks: Of each field of a fused table, where they differ; 0: only the field's mean.
        activation: What stands between the factors of a linear layer.
        kappa: Of the shifted ReLU, in standard deviations.
        folded_into: Linear layer that reads the codes directly (tables only); None: not folded.
        absorbs: First-order term whose weights the codes give, too (tables only); None: it keeps its own.
    """

    name: str
    method: Method
    rank: int
    ranks: Mapping[str, int] | None = None
    activation: Activation = "none"
    kappa: float = DEFAULT_KAPPA
    folded_into: str | None = None
    absorbs: str | None = None

    def __post_init__(self) -> None:
        if self.ranks is not None:
            self._check_ranks(self.ranks)
        elif type(self.rank) is not int or self.rank < 1:
            raise OptionError(f"rank {self.rank!r} of {self.name}: a rank is a whole number, at least 1")
        if self.method not in METHODS:
            raise OptionError(f"method {self.method!r} of {self.name}: choose from {', '.join(METHODS)}")
        if self.activation not in ACTIVATIONS:
            raise OptionError(
                f"activation {self.activation!r} of {self.name}: choose from {', '.join(ACTIVATIONS)}"
            )

    def _check_ranks(self, ranks: Mapping[str, int]) -> None:
        if not isinstance(ranks, Mapping) or not ranks:
            raise OptionError(f"ranks {ranks!r} of {self.name}: a rank for each field is needed")
        for name, rank in ranks.items():
            if type(rank) is not int or rank < 0:
                raise OptionError(
                    f"rank {rank!r} of {self.name}, field {name!r}: a rank is a whole number, and 0 leaves "
                    "only the field's mean"
                )
        if self.rank != max(ranks.values()):
            raise OptionError(
                f"rank {self.rank!r} of {self.name}: with ranks by field it is the largest of them, "
                f"{max(ranks.values())}"
            )

    def rank_of(self, field: str) -> int:
        """The rank of one field of a fused table."""
        return self.rank if self.ranks is None else self.ranks[field]

    def with_rank(self, rank: int | Mapping[str, int]) -> PlanEntry:
        """The same entry with another rank, or one for each field (the same ones are one for all)."""
        if isinstance(rank, int):
            return replace(self, rank=rank, ranks=None)
        largest = max(rank.values(), default=0)
        if largest and set(rank.values()) == {largest}:
            return replace(self, rank=largest, ranks=None)
        return replace(self, rank=largest, ranks=dict(rank))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do to a model.

    Attributes:
        entries: Modules and what becomes of them.
        bfloat16: Modules whose rows (of a table, its codes, first-order weights) are rounded to bfloat16,
            after all entries, whether they have one or not: a checkpoint has two bytes for each number, a
            model in memory still four.
        left_alone: Modules that were asked for and stay as they are, and why; only for whoever has the plan
            made: it is no part of what is written, nor of equality.
    """

    entries: tuple[PlanEntry, ...] = ()
    bfloat16: tuple[str, ...] = ()
    left_alone: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        names: Any = self.bfloat16
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise OptionError(f"bfloat16 {names!r}: a list of names of modules is needed")
        for name in names:
            if not isinstance(name, str):
                raise OptionError(f"bfloat16 names {name!r}: the name of a module is needed")
            if names.count(name) > 1:
                raise OptionError(f"bfloat16 names {name!r} twice; give each module once")
        # From JSON it is a list.
        object.__setattr__(self, "bfloat16", tuple(names))

    def __add__(self, other: Plan) -> Plan:
        """First this plan, then the other."""
        return Plan(
            entries=self.entries + other.entries,
            bfloat16=tuple(dict.fromkeys(self.bfloat16 + other.bfloat16)),
            left_alone={**self.left_alone, **other.left_alone},
        )

    @property
    def modules(self) -> list[str]:
        """Names of all modules that it changes."""
        return list(dict.fromkeys([*(entry.name for entry in self.entries), *self.bfloat16]))

    def using(self, **changes: Any) -> Plan:
        """The same plan with some attributes of every entry replaced."""
        return replace(self, entries=tuple(replace(entry, **changes) for entry in self.entries))

    def to_json(self) -> dict[str, Any]:
        """As plain values; those of a plan that rounds nothing are as ever."""
        value = {"format_version": FORMAT_VERSION, "entries": [_plain(entry) for entry in self.entries]}
        return value | ({"bfloat16": list(self.bfloat16)} if self.bfloat16 else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, source: str = "plan") -> Plan:
        """Back from plain values.

        Raises:
            DataError: unknown version, or something that is not understood.
        """
        version = value.get("format_version") if isinstance(value, Mapping) else None
        if version != FORMAT_VERSION:
            raise DataError(f"{source}: plan format version {reprlib.repr(version)} is unknown")
        try:
            given = {key: item for key, item in value.items() if key != "format_version"}
            if "left_alone" in given:
                raise ValueError("left_alone is no part of a plan's file")
            plan = cls(**given | {"entries": tuple(PlanEntry(**entry) for entry in value["entries"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: plan not understood ({error})") from error
        # What the plan itself does not look at.
        storage.as_typed(value, _Stored, source=source, fix="the plan is not understood")
        return plan

    def save(self, location: str) -> None:
        """Write as JSON."""
        storage.write_json(location, self.to_json())

    @classmethod
    def load(cls, location: str) -> Plan:
        """Read from JSON.

        Raises:
            DataError: no such file, or not a plan.
        """
        return cls.from_json(storage.read_json(location, dict[str, Any]), source=location)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a plan's JSON holds."""

    format_version: int
    entries: tuple[PlanEntry, ...]
    bfloat16: tuple[str, ...] = ()


def _plain(entry: PlanEntry) -> dict[str, Any]:
    """Without what is not used of ``_LATER``: a plan that older releases can read."""
    return {key: value for key, value in asdict(entry).items() if value is not None or key not in _LATER}
