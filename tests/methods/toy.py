"""A method that nobody ships: integer codes, and one slot for all rare ids. It has no rank.

All that afm-dist knows of it is what this file registers; nothing else was edited for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from afm_dist import storage
from afm_dist.compression.allocate import Choice
from afm_dist.compression.config import MethodConfig
from afm_dist.compression.facts import MethodFacts
from afm_dist.compression.method import Candidates, Method
from afm_dist.compression.plan import TABLE, Plan, PlanEntry
from afm_dist.compression.registry import register_facts, register_method, variants
from afm_dist.compression.variant import Request, SweptModel, Variant
from afm_dist.errors import OptionError
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.fused import FusedEmbedding
from afm_dist.tables.parts import SharedSlot, Store

LEVELS = 127


@dataclass(frozen=True, kw_only=True)
class Toy(MethodConfig):
    """Codes of eight bits with a step a field; a share of the ids keeps a slot of its own."""

    tag: ClassVar[str] = "toy"

    own: float = 1.0

    def __post_init__(self) -> None:
        if type(self.own) not in (int, float) or not 0 <= self.own <= 1:
            raise OptionError(f"own {self.own!r}: a share of the ids, 0 to 1")

    def details(self) -> dict[str, str]:
        return {"Own slots": f"{self.own:.0%}"}


class IntegerStore(Store):
    """Whole numbers, times a step that is trained."""

    codes: Tensor

    def __init__(self, slots: Sequence[int], width: int) -> None:
        super().__init__()
        self.slots, self.width = tuple(slots), width
        self.register_buffer("codes", torch.zeros(sum(slots), width, dtype=torch.int8))
        self.step = nn.Parameter(torch.ones(len(slots)))

    def forward(self, rows: Tensor) -> Tensor:
        codes = nn.functional.embedding(rows, self.codes)
        return codes.to(self.step.dtype) * self.step[:, None]

    def of_field(self, field: int, slots: Tensor) -> Tensor:
        codes = self.codes[sum(self.slots[:field]) :][slots]
        return codes.to(self.step.dtype) * self.step[field]

    def field_numbers(self, field: int) -> dict[str, int]:
        return {"codes": self.slots[field] * self.width, "step": 1}


class ToyOfTable(Method[Toy, FusedEmbedding]):
    stacks = True

    def examples(self, module: FusedEmbedding) -> list[Toy]:
        return [Toy(), Toy(own=0.5)]

    def refusal(self, module: FusedEmbedding) -> str | None:
        return None if module.store is None else "has integer codes already"

    def build(self, name: str, module: FusedEmbedding, config: Toy) -> FusedEmbedding:
        own = [int(config.own * rows) for rows in module.cardinalities]
        address = SharedSlot(module.cardinalities, own)
        new = FusedEmbedding(
            module.names,
            module.cardinalities,
            module.dim,
            code_dim=None if module.projection is None else module.code_dim,
            address=address,
            store=IntegerStore(address.slots, module.code_dim),
        )
        if module.projection is not None:
            new.projection, new.bias = deepcopy(module.projection), deepcopy(module.bias)
        new.folded = module.folded
        return new

    def fill(
        self, new: FusedEmbedding, name: str, module: FusedEmbedding, config: Toy, known: Statistics
    ) -> None:
        store = new.store
        assert isinstance(store, IntegerStore)
        for i in range(len(new.names)):
            rows, slots = module.codes(i).detach(), store.codes[new.rows(i)]
            kept = rows[: len(slots)].clone()
            if len(slots) < len(rows):
                kept[-1] = rows[len(slots) - 1 :].mean(0)
            step = kept.abs().max().clamp(min=1e-12) / LEVELS
            store.step[i] = step
            slots.copy_((kept / step).round().to(torch.int8))

    def candidates(
        self,
        name: str,
        module: FusedEmbedding,
        config: Toy,
        known: Statistics,
        cost: Callable[[Toy], int],
        *,
        by_field: bool,
    ) -> Candidates:
        found = []
        for own in (0.25, 0.5, 1.0):
            choice = Toy(own=own)
            error = sum(
                (1 - own) * float((known.sensitivity(key, known[key].width) * known[key].covariance).sum())
                for field in module.names
                for key in [field_key(name, field)]
            )
            found.append(Choice(choice, cost(choice), max(0.0, error) + 1e-9))
        return Candidates(whole=[choice for choice in found if choice.cost < 0])

    def smallest(self, module: FusedEmbedding, config: Toy, *, by_field: bool) -> list[Toy]:
        return [Toy(own=0.25)]

    def row_encoder(self, name: str, field: str, config: Toy, width: int, known: Statistics) -> Any:
        return Rounded(width, float(known[field_key(name, field)].covariance.trace()) ** 0.5)


class Rounded:
    """Rows in steps that follow from the statistics: what streams of a table larger than memory."""

    def __init__(self, width: int, scale: float) -> None:
        self.width, self.step = width, scale / LEVELS

    @property
    def digest(self) -> str:
        return storage.sha256(repr((self.width, self.step)).encode())

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows / self.step).round() * self.step


class ToyFacts(MethodFacts[Toy]):
    def notes(self, entries: Sequence[PlanEntry]) -> list[str]:
        return [f"{entry.name} has integer codes." for entry in entries]


@dataclass(frozen=True, kw_only=True)
class ToyVariant(Variant):
    """Integer codes on top of low rank, or by themselves where a sweep tries them."""

    def template(self, model: nn.Module, request: Request) -> Plan:
        return Plan(entries=(PlanEntry(TABLE, Toy()),))

    def plan(self, model: nn.Module, moments: Mapping[str, Moments], request: Request) -> Plan:
        low_rank = variants()["afm"].plan(model, moments, request)
        return low_rank + Plan(entries=(PlanEntry(TABLE, Toy(own=0.5)),))

    def points(self, model: nn.Module, request: Request) -> Iterator[SweptModel]:
        for own in (0.25, 1.0):
            yield SweptModel(f"toy-{own:.0%}", Plan(entries=(PlanEntry(TABLE, Toy(own=own)),)))


TOY = ToyVariant(name="toy", words="toy: integer codes, and one slot for all rare ids.")


def register() -> None:
    register_method(Toy, FusedEmbedding, ToyOfTable())
    register_facts(Toy, ToyFacts())
