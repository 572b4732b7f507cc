"""Ranks for a budget of bytes: what each rank costs and saves, and the best ranks that fit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from afm_dist.checkpoint import ModelConfig
from afm_dist.compression.absorb import in_agreeing_units
from afm_dist.compression.allocate import Choice, front
from afm_dist.compression.methods import FACTORIZATIONS, ProjectedOutputs
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import FieldRanks, Plan, PlanEntry
from afm_dist.compression.ranks import Ranks, field_key, field_name, module_name, plan_of
from afm_dist.compression.rewrite import restructure_
from afm_dist.compression.rounding import rounded_tensors
from afm_dist.compression.sensitivity import tail_errors
from afm_dist.embedding import FusedEmbedding
from afm_dist.errors import OptionError
from afm_dist.statistics.moments import Moments

# Combinations kept after each merge where every field is one: of dozens of fronts, in a second or two.
FIELDS_FRONT = 1 << 13
# What a compressed module adds to a checkpoint besides numbers, at most; where its fields have ranks of
# their own, also each group of equal ones (three tensors' headers) and each field (a line of the plan).
ENTRY_BYTES, GROUP_BYTES, RANK_BYTES = 1024, 400, 32
# The same for a module whose rows are rounded: its name in the plan, the longer name of another type.
ROUNDED_BYTES = 64
EVEN: Mapping[str, float] = MappingProxyType({})

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
        ranks: By module, of a table perhaps by field; None leaves one as it is.
        bytes: Of the model's tensors.
        error: Predicted mean square of the change of the logit, before fine-tuning, to first order.
        errors: What each module adds to it.
    """

    ranks: Ranks
    bytes: int
    error: float
    errors: Mapping[str, float]


def allocate(
    config: ModelConfig,
    plan: Plan,
    moments: Mapping[str, Moments],
    sensitivity: Mapping[str, Tensor],
    budget: int,
    *,
    field_ranks: FieldRanks = "uniform",
    emphasis: Mapping[str, float] = EVEN,
) -> Allocation:
    """The ranks of some modules with the least error, such that the whole model fits into a budget.

    The least to within the thinning of the fronts (``FRONT``, ``FIELDS_FRONT``); with ranks by field no more
    than with common ones.

    The error of a module is that of the components it drops, each weighed by what it does to the logit;
    those of several modules are added up, as if they were not correlated. What a ReLU between the
    factors cuts is not among it.

    Args:
        config: The uncompressed model.
        plan: Of each module how it would be compressed, the rank is replaced; and what is rounded, whatever
            ranks are chosen.
        moments: Of their outputs, by ``collect_moments``'s names.
        sensitivity: E[ggᵀ] by the same names, from ``output_sensitivity``.
        budget: Bytes of all tensors of the model.
        field_ranks: Whether the fields of a fused table have one rank, at least 1, or ``each`` its own,
            0 included.
        emphasis: How many times its error a module counts in the choice; 1 where none is given.

    Raises:
        OptionError: the budget is less than the smallest the model can become, or no error is predicted
            for an entry's method.
    """
    check_budget(config, plan, budget, field_ranks=field_ranks)
    known = OutputStatistics(moments, sensitivity)
    tails = {entry.name: _tails(entry, known) for entry in plan.entries}
    weighed = {
        name: {key: emphasis.get(name, 1.0) * errors for key, errors in own.items()}
        for name, own in tails.items()
    }
    spare = budget - structure_bytes(config, _only(plan))
    choices = {entry.name: _choices(config, plan, entry, weighed[entry.name]) for entry in plan.entries}
    found = [_common_ranks(choices, spare)]
    if field_ranks == "each":
        # Among them are equal ranks, too, but a thinned front may have lost the best of those.
        found.append(_own_ranks(config, plan, choices, weighed, spare))
    ranks = min(filter(None, found), key=lambda ranks: sum(_errors(weighed, ranks).values()))
    errors = _errors(tails, ranks)
    return Allocation(
        ranks=ranks,
        bytes=structure_bytes(config, plan_of(plan, ranks)),
        error=sum(errors.values()),
        errors=errors,
    )


def check_budget(
    config: ModelConfig,
    plan: Plan,
    budget: int,
    *,
    besides: int = 0,
    field_ranks: FieldRanks = "uniform",
) -> None:
    """Refuse a budget that no ranks can meet; needs no data.

    Args:
        config: The uncompressed model.
        plan: As in ``allocate``.
        budget: Bytes that are allowed.
        besides: Bytes that are needed besides tensors.
        field_ranks: As in ``allocate``.

    Raises:
        OptionError: says what is possible.
    """
    least = least_bytes(config, plan, field_ranks) + besides
    if budget < least:
        names = ", ".join(entry.name for entry in plan.entries)
        raise OptionError(
            f"a budget of {budget:,} bytes: {least:,} is the least this model can "
            f"become by compressing {names}; give more to --target-bytes, or less to --target-ratio"
        )


def least_bytes(config: ModelConfig, plan: Plan, field_ranks: FieldRanks) -> int:
    """Bytes of all tensors of the smallest model that ranks can make.

    Args:
        config: The uncompressed model.
        plan: As in ``allocate``.
        field_ranks: As in ``allocate``.
    """
    whole = least = structure_bytes(config, _only(plan))
    for entry in plan.entries:
        smallest = [entry.with_rank(1)]
        if field_ranks == "each" and (fields := fields_of(config, entry.name)):
            smallest.append(entry.with_rank(dict.fromkeys(fields, 0)))
        least += min(0, *(structure_bytes(config, _only(plan, one)) - whole for one in smallest))
    return least


def fields_of(config: ModelConfig, name: str) -> dict[str, int]:
    """The fields of a module that is a fused table, and their rows; of another one there are none."""
    table = _table(config, name)
    return {} if table is None else dict(zip(table.names, table.cardinalities, strict=True))


def _table(config: ModelConfig, name: str) -> FusedEmbedding | None:
    """A module that is a fused table, without numbers; None for another one."""
    with torch.device("meta"):
        module = config.build().get_submodule(name)
    return module if isinstance(module, FusedEmbedding) else None


def _only(plan: Plan, *entries: PlanEntry) -> Plan:
    """What a plan rounds, and these entries in place of its own."""
    return replace(plan, entries=entries)


# By module, and by the name of its moments: the errors of each rank, shape (M + 1,).
_Tails = Mapping[str, Mapping[str, Tensor]]


def _common_ranks(choices: Mapping[str, Sequence[Choice]], spare: int) -> Ranks | None:
    """One rank for each module, or none; in all no more bytes than to spare, which may be negative."""
    best = front(choices).best(spare)
    return None if best is None else {name: choice.rank for name, choice in best.items()}


def _own_ranks(
    config: ModelConfig,
    plan: Plan,
    choices: Mapping[str, Sequence[Choice]],
    tails: _Tails,
    spare: int,
) -> Ranks | None:
    """One rank for each field of the tables, and for each other module, or none."""
    tables = {entry.name: rows for entry in plan.entries if (rows := fields_of(config, entry.name))}
    parts: dict[str, Sequence[Choice]] = {}
    for entry in plan.entries:
        if entry.name not in tables:
            parts[entry.name] = choices[entry.name]
            continue
        least, costs = _field_costs(config, plan, entry, tables[entry.name])
        spare -= least
        for field, cost in costs.items():
            key = field_key(entry.name, field)
            errors = tails[entry.name][key].tolist()
            parts[key] = [Choice(rank, rank * cost, error) for rank, error in enumerate(errors)]
    best = front(parts, limit=FIELDS_FRONT).best(spare)
    if best is None:
        return None
    return {
        entry.name: {field: best[field_key(entry.name, field)].rank or 0 for field in tables[entry.name]}
        if entry.name in tables
        else best[entry.name].rank
        for entry in plan.entries
    }


def _field_costs(
    config: ModelConfig, plan: Plan, entry: PlanEntry, rows: Mapping[str, int]
) -> tuple[int, dict[str, int]]:
    """Bytes more, or less, that the model has with all fields at rank 0; what a rank more of each costs."""
    means = dict.fromkeys(rows, 0)
    least = structure_bytes(config, _only(plan, entry.with_rank(means)))
    few, many = min(rows, key=rows.__getitem__), max(rows, key=rows.__getitem__)
    one, other = (
        structure_bytes(config, _only(plan, entry.with_rank({**means, field: 1}))) - least
        for field in (few, many)
    )
    # A rank more is always as many numbers more: a code a row, and as much of all that reads codes.
    by_row = (other - one) // max(1, rows[many] - rows[few])
    costs = {field: one + by_row * (own - rows[few]) for field, own in rows.items()}
    return least - structure_bytes(config, _only(plan)), costs


def _choices(config: ModelConfig, plan: Plan, entry: PlanEntry, tails: Mapping[str, Tensor]) -> list[Choice]:
    """One rank for all of a module that makes it smaller, or none."""
    errors = torch.stack(list(tails.values())).sum(0).tolist()
    costs = _costs(config, plan, entry, len(errors) - 1)
    return [
        *(Choice(rank, cost, errors[rank]) for rank, cost in costs.items() if cost < 0),
        Choice(None, 0, 0.0),
    ]


def _errors(tails: _Tails, ranks: Ranks) -> dict[str, float]:
    """By module."""

    def error(key: str, errors: Tensor, rank: int | Mapping[str, int] | None) -> float:
        if isinstance(rank, Mapping):
            rank = rank[str(field_name(key))]
        return 0.0 if rank is None else float(errors[rank])

    return {
        name: sum(error(key, errors, ranks[name]) for key, errors in own.items())
        for name, own in tails.items()
    }


def _costs(config: ModelConfig, plan: Plan, entry: PlanEntry, ranks: int) -> dict[int, int]:
    """Bytes more, or less, that the model has with each rank of a module."""
    whole = structure_bytes(config, _only(plan))

    def cost(rank: int) -> int:
        return structure_bytes(config, _only(plan, entry.with_rank(rank))) - whole

    first = cost(1)
    # A rank more is always as many bytes more.
    slope = cost(2) - first if ranks > 1 else 0
    return {rank: first + (rank - 1) * slope for rank in range(1, ranks + 1)}


def plan_bytes(plan: Plan) -> int:
    """What a plan adds to a checkpoint besides numbers, at most: names, the plan itself."""
    rounded = sum(len(json.dumps(name)) + ROUNDED_BYTES for name in plan.bfloat16)
    return rounded + sum(_entry_bytes(entry) for entry in plan.entries)


def _entry_bytes(entry: PlanEntry) -> int:
    if entry.ranks is None:
        return ENTRY_BYTES
    fields = sum(len(json.dumps(field)) + RANK_BYTES for field in entry.ranks)
    return ENTRY_BYTES + fields + GROUP_BYTES * len(set(entry.ranks.values()))


def most_plan_bytes(config: ModelConfig, plan: Plan, field_ranks: FieldRanks) -> int:
    """The same whatever the ranks will be.

    Args:
        config: The uncompressed model.
        plan: Of any ranks.
        field_ranks: As in ``allocate``.
    """
    if field_ranks == "uniform":
        return plan_bytes(plan)
    return plan_bytes(_only(plan, *(_longest(config, entry) for entry in plan.entries)))


def _longest(config: ModelConfig, entry: PlanEntry) -> PlanEntry:
    """As many different ranks of fields as there can be, 0 and the whole width among them."""
    table = _table(config, entry.name)
    if table is None:
        return entry
    different = table.dim + 1 + (entry.absorbs is not None)
    return entry.with_rank({field: i % different for i, field in enumerate(table.names)})


def structure_bytes(config: ModelConfig, plan: Plan) -> int:
    """Bytes of a model's stored tensors once a plan is applied; nothing is allocated."""
    with torch.device("meta"):
        model = config.build()
        restructure_(model, plan)
    short = rounded_tensors(model, plan)
    return sum(
        tensor.numel() * short.get(name, tensor.dtype).itemsize for name, tensor in model.state_dict().items()
    )


def _tails(entry: PlanEntry, known: OutputStatistics) -> dict[str, Tensor]:
    """By the names of a module's moments: the errors of each rank, shape (M + 1,)."""
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
    tails = {}
    for key in keys:
        width = known[key].width
        whole = method.projection(key, width, width, known)
        tails[key] = tail_errors(whole, known.sensitivity(key, width))
    return tails
