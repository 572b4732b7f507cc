"""What a plan says of rows that are rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from afm_dist.compression.config import MethodConfig
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.errors import OptionError

_DTYPES = {"bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Rounding(MethodConfig):
    """The rows of a module (of a table, its codes, first-order weights) in fewer bytes each.

    Attributes:
        dtype: In which a checkpoint holds them; a model in memory has the same numbers in float32.
    """

    tag: ClassVar[str] = "rounding"

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise OptionError(f"dtype {self.dtype!r}: choose from {', '.join(_DTYPES)}")

    @property
    def in_words(self) -> str:
        """Say ``to bfloat16``."""
        return f"to {self.dtype}"

    def details(self) -> dict[str, str]:
        """Give the type."""
        return {"Stored as": self.dtype}

    def structure(self) -> None:
        """Say that the model in memory is as fast as without."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """Give the type as torch has it."""
        return _DTYPES[self.dtype]


def rounding(*modules: str) -> Plan:
    """Plan to round the rows of some modules to bfloat16."""
    return Plan(entries=tuple(PlanEntry(name, Rounding()) for name in modules))


def read_version_1(value: Mapping[str, Any]) -> tuple[PlanEntry, ...]:
    """Read the modules to round from a plan of format version 1: the names in ``bfloat16``.

    Raises:
        ValueError: it is no list of names.
    """
    names: Any = value.get("bfloat16", [])
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"bfloat16 {names!r}: a list of names of modules is needed")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"bfloat16 names {name!r}: the name of a module is needed")
        if names.count(name) > 1:
            raise ValueError(f"bfloat16 names {name!r} twice; give each module once")
    return tuple(PlanEntry(name, Rounding()) for name in names)
