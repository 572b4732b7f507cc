"""Ranks for a budget of bytes: what each rank costs and saves, and the best ranks that fit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    entries: Sequence[PlanEntry],
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
        entries: Each with the module's name and how it would be compressed; the rank is replaced.
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
    check_budget(config, entries, budget, field_ranks=field_ranks)
    known = OutputStatistics(moments, sensitivity)
    tails = {entry.name: _tails(entry, known) for entry in entries}
    weighed = {
        name: {key: emphasis.get(name, 1.0) * errors for key, errors in own.items()}
        for name, own in tails.items()
    }
    spare = budget - structure_bytes(config, Plan())
    choices = {entry.name: _choices(config, entry, weighed[entry.name]) for entry in entries}
    found = [_common_ranks(choices, spare)]
    if field_ranks == "each":
        # Among them are equal ranks, too, but a thinned front may have lost the best of those.
        found.append(_own_ranks(config, entries, choices, weighed, spare))
    ranks = min(filter(None, found), key=lambda ranks: sum(_errors(weighed, ranks).values()))
    errors = _errors(tails, ranks)
    return Allocation(
        ranks=ranks,
        bytes=structure_bytes(config, plan_of(entries, ranks)),
        error=sum(errors.values()),
        errors=errors,
    )


def check_budget(
    config: ModelConfig,
    entries: Sequence[PlanEntry],
    budget: int,
    *,
    besides: int = 0,
    field_ranks: FieldRanks = "uniform",
) -> None:
    """Refuse a budget that no ranks can meet; needs no data.

    Args:
        config: The uncompressed model.
        entries: What would be compressed.
        budget: Bytes that are allowed.
        besides: Bytes that are needed besides tensors.
        field_ranks: As in ``allocate``.

    Raises:
        OptionError: says what is possible.
    """
    least = least_bytes(config, entries, field_ranks) + besides
    if budget < least:
        names = ", ".join(entry.name for entry in entries)
        raise OptionError(
            f"a budget of {budget:,} bytes: {least:,} is the least this model can "
            f"become by compressing {names}; give more to --target-bytes, or less to --target-ratio"
        )


def least_bytes(config: ModelConfig, entries: Sequence[PlanEntry], field_ranks: FieldRanks) -> int:
    """Bytes of all tensors of the smallest model that ranks can make.

    Args:
        config: The uncompressed model.
        entries: What would be compressed.
        field_ranks: As in ``allocate``.
    """
    whole = least = structure_bytes(config, Plan())
    for entry in entries:
        smallest = [entry.with_rank(1)]
        if field_ranks == "each" and (fields := fields_of(config, entry.name)):
            smallest.append(entry.with_rank(dict.fromkeys(fields, 0)))
        least += min(0, *(structure_bytes(config, Plan(entries=(one,))) - whole for one in smallest))
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


# By module, and by the name of its moments: the errors of each rank, shape (M + 1,).
_Tails = Mapping[str, Mapping[str, Tensor]]


def _common_ranks(choices: Mapping[str, Sequence[Choice]], spare: int) -> Ranks | None:
    """One rank for each module, or none; in all no more bytes than to spare, which may be negative."""
    best = front(choices).best(spare)
    return None if best is None else {name: choice.rank for name, choice in best.items()}


def _own_ranks(
    config: ModelConfig,
    entries: Sequence[PlanEntry],
    choices: Mapping[str, Sequence[Choice]],
    tails: _Tails,
    spare: int,
) -> Ranks | None:
    """One rank for each field of the tables, and for each other module, or none."""
    tables = {entry.name: rows for entry in entries if (rows := fields_of(config, entry.name))}
    parts: dict[str, Sequence[Choice]] = {}
    for entry in entries:
        if entry.name not in tables:
            parts[entry.name] = choices[entry.name]
            continue
        rows = tables[entry.name]
        least, by_row, besides = _field_costs(config, entry, rows)
        spare -= least
        for field in rows:
            key = field_key(entry.name, field)
            cost = by_row * rows[field] + besides
            errors = tails[entry.name][key].tolist()
            parts[key] = [Choice(rank, rank * cost, error) for rank, error in enumerate(errors)]
    best = front(parts, limit=FIELDS_FRONT).best(spare)
    if best is None:
        return None
    return {
        entry.name: {field: best[field_key(entry.name, field)].rank or 0 for field in tables[entry.name]}
        if entry.name in tables
        else best[entry.name].rank
        for entry in entries
    }


def _field_costs(config: ModelConfig, entry: PlanEntry, rows: Mapping[str, int]) -> tuple[int, int, int]:
    """Bytes more, or less, that the model has with all fields at rank 0; what a rank more of a field costs.

    Returns:
        The first; the bytes of a rank for each row of the field; and those besides.
    """
    means, (field, *_) = dict.fromkeys(rows, 0), rows
    least = structure_bytes(config, Plan(entries=(entry.with_rank(means),)))
    one = structure_bytes(config, Plan(entries=(entry.with_rank({**means, field: 1}),)))
    # A rank more is always as many numbers more: a code a row, and as much of all that reads codes.
    codes = torch.bfloat16 if entry.name in entry.bfloat16 else torch.get_default_dtype()
    by_row = codes.itemsize
    return least - structure_bytes(config, Plan()), by_row, one - least - by_row * rows[field]


def _choices(config: ModelConfig, entry: PlanEntry, tails: Mapping[str, Tensor]) -> list[Choice]:
    """One rank for all of a module that makes it smaller, or none."""
    errors = torch.stack(list(tails.values())).sum(0).tolist()
    costs = _costs(config, entry, len(errors) - 1)
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


def _costs(config: ModelConfig, entry: PlanEntry, ranks: int) -> dict[int, int]:
    """Bytes more, or less, that the model has with each rank of a module."""
    whole = structure_bytes(config, Plan())

    def cost(rank: int) -> int:
        return structure_bytes(config, Plan(entries=(entry.with_rank(rank),))) - whole

    first = cost(1)
    # A rank more is always as many bytes more.
    slope = cost(2) - first if ranks > 1 else 0
    return {rank: first + (rank - 1) * slope for rank in range(1, ranks + 1)}


def entry_bytes(entry: PlanEntry) -> int:
    """What a compressed module adds to a checkpoint besides numbers, at most: names, a plan's entry."""
    if entry.ranks is None:
        return ENTRY_BYTES
    fields = sum(len(json.dumps(field)) + RANK_BYTES for field in entry.ranks)
    return ENTRY_BYTES + fields + GROUP_BYTES * len(set(entry.ranks.values()))


def most_entry_bytes(config: ModelConfig, entry: PlanEntry, field_ranks: FieldRanks) -> int:
    """The same whatever the ranks will be.

    Args:
        config: The uncompressed model.
        entry: Of any rank.
        field_ranks: As in ``allocate``.
    """
    table = _table(config, entry.name)
    if field_ranks == "uniform" or table is None:
        return entry_bytes(entry)
    # As many different ranks as there can be, 0 and the whole width among them.
    different = table.dim + 1 + (entry.absorbs is not None)
    return entry_bytes(entry.with_rank({field: i % different for i, field in enumerate(table.names)}))


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
