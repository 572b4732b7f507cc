"""Ranks for a budget of bytes: what each rank costs and saves, and the best ranks that fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from afm_dist.checkpoint import ModelConfig
from afm_dist.compression.absorb import in_agreeing_units
from afm_dist.compression.allocate import Choice, front
from afm_dist.compression.methods import FACTORIZATIONS, ProjectedOutputs
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.ranks import module_name
from afm_dist.compression.rewrite import restructure_
from afm_dist.compression.sensitivity import tail_errors
from afm_dist.errors import OptionError
from afm_dist.statistics.moments import Moments

_UNITS = {"": 1, "B": 1} | {
    prefix + unit: base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k", "M", "G", "T"), 1)
}


def parse_bytes(text: str) -> int:
    """A number of bytes with or without a unit: ``100MB``, ``1.5 GiB``, ``2000000``.

    Raises:
        OptionError: not a positive number with a unit that is known.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    unit = found[2].replace("K", "k") if found else ""
    if found is None or unit not in _UNITS or not 0 < float(found[1]) < math.inf:
        raise OptionError(f"{text!r} is no number of bytes; write 100MB, 1.5GiB or 2000000")
    return int(float(found[1]) * _UNITS[unit])


@dataclass(frozen=True)
class Allocation:
    """The best ranks within a budget.

    Attributes:
        ranks: By module; None leaves one as it is.
        bytes: Of the model's tensors.
        error: Predicted mean square of the change of the logit, before fine-tuning, to first order.
        errors: What each module adds to it.
    """

    ranks: Mapping[str, int | None]
    bytes: int
    error: float
    errors: Mapping[str, float]


def allocate(
    config: ModelConfig,
    entries: Sequence[PlanEntry],
    moments: Mapping[str, Moments],
    sensitivity: Mapping[str, Tensor],
    budget: int,
) -> Allocation:
    """The ranks of some modules with the least error, such that the whole model fits into a budget.

    The error of a module is that of the components it drops, each weighed by what it does to the logit;
    those of several modules are added up, as if they were not correlated. What a ReLU between the
    factors cuts is not among it.

    Args:
        config: The uncompressed model.
        entries: Each with the module's name and how it would be compressed; the rank is replaced.
        moments: Of their outputs, by ``collect_moments``'s names.
        sensitivity: E[ggᵀ] by the same names, from ``output_sensitivity``.
        budget: Bytes of all tensors of the model.

    Raises:
        OptionError: the budget is less than the smallest the model can become, or no error is predicted
            for an entry's method.
    """
    check_budget(config, entries, budget)
    whole = structure_bytes(config, Plan())
    known = OutputStatistics(moments, sensitivity)
    choices: dict[str, list[Choice]] = {}
    for entry in entries:
        errors = _errors(entry, known)
        costs = _costs(config, entry, len(errors) - 1)
        smaller = [Choice(rank, cost, errors[rank]) for rank, cost in costs.items() if cost < 0]
        choices[entry.name] = [*smaller, Choice(None, 0, 0.0)]
    best = front(choices).best(budget - whole)
    assert best is not None
    plan = Plan(
        entries=tuple(
            replace(entry, rank=rank) for entry in entries if (rank := best[entry.name].rank) is not None
        )
    )
    return Allocation(
        ranks={name: choice.rank for name, choice in best.items()},
        bytes=structure_bytes(config, plan),
        error=sum(choice.error for choice in best.values()),
        errors={name: choice.error for name, choice in best.items()},
    )


def check_budget(config: ModelConfig, entries: Sequence[PlanEntry], budget: int, *, besides: int = 0) -> None:
    """Refuse a budget that no ranks can meet; needs no data.

    Args:
        config: The uncompressed model.
        entries: What would be compressed.
        budget: Bytes that are allowed.
        besides: Bytes that are needed besides tensors.

    Raises:
        OptionError: says what is possible.
    """
    whole = structure_bytes(config, Plan())
    names = ", ".join(entry.name for entry in entries)
    least = whole + besides + sum(min(0, *_costs(config, entry, 1).values()) for entry in entries)
    if budget < least:
        raise OptionError(
            f"a budget of {budget:,} bytes: {least:,} is the least this model can "
            f"become by compressing {names}; give more to --target-bytes, or less to --target-ratio"
        )


def _costs(config: ModelConfig, entry: PlanEntry, ranks: int) -> dict[int, int]:
    """Bytes more, or less, that the model has with each rank of a module."""
    whole = structure_bytes(config, Plan())

    def cost(rank: int) -> int:
        return structure_bytes(config, Plan(entries=(replace(entry, rank=rank),))) - whole

    first = cost(1)
    # A rank more is always as many bytes more.
    slope = cost(2) - first if ranks > 1 else 0
    return {rank: first + (rank - 1) * slope for rank in range(1, ranks + 1)}


def structure_bytes(config: ModelConfig, plan: Plan) -> int:
    """Bytes of a model's stored tensors once a plan is applied; nothing is allocated."""
    with torch.device("meta"):
        model = config.build()
        restructure_(model, plan)
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _errors(entry: PlanEntry, known: OutputStatistics) -> list[float]:
    """By rank of a module, summed over its fields."""
    keys = [key for key in known if module_name(key) == entry.name]
    if not keys:
        raise OptionError(f"no moments of {entry.name}; collect them before its rank is chosen")
    if entry.absorbs is not None:
        known = in_agreeing_units(known, keys)
    method = FACTORIZATIONS[entry.method]
    if not isinstance(method, ProjectedOutputs):
        raise OptionError(
            f"method {entry.method!r} of {entry.name}: what its ranks do to the logit is not predicted; take "
            "'afm' or 'weighted'"
        )
    tails = []
    for key in keys:
        width = known[key].width
        whole = method.projection(key, width, width, known)
        tails.append(tail_errors(whole, known.sensitivity(key, width)))
    return [float(error) for error in torch.stack(tails).sum(0)]
