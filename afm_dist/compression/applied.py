"""What a compressed model knows of itself: which entry of which plan made each of its modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.errors import OptionError

_APPLIED, _ROUNDED = "_afm_dist_entry", "_afm_dist_rounded"


@dataclass(frozen=True)
class _Applied:
    """An entry, and the how manyth it was of its model."""

    entry: PlanEntry
    number: int


def record_entry(model: nn.Module, original: nn.Module, replacement: nn.Module, entry: PlanEntry) -> None:
    """Note in a replacement what made it."""
    number = max((applied.number for _, applied in _applied(model)), default=0) + 1
    setattr(replacement, _APPLIED, _Applied(entry, number))
    if _ROUNDED in vars(original):
        setattr(replacement, _ROUNDED, True)


def record_rounding(model: nn.Module, plan: Plan) -> None:
    """Note in the modules whose rows a plan rounds that it does."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in plan.bfloat16:
        setattr(modules[name], _ROUNDED, True)


def applied_plan(model: nn.Module) -> Plan:
    """The plan that leads from the uncompressed model to this one: all rounds of compression, in order.

    Args:
        model: Any module, compressed by ``compress_`` or read by ``from_pretrained``; a part of such a
            model, or a model that has it as a part, has a plan with names of its own.

    Raises:
        OptionError: of a part or a whole of the compressed model whose table was folded into a layer, or
            took in first-order weights: that only the model that declares it can say.
    """
    names = {module: name for name, module in model.named_modules()}
    every = dict(model.named_modules(remove_duplicate=False))
    entries: list[PlanEntry] = []
    for module, applied in _applied(model):
        entry = applied.entry
        if every.get(entry.name) is not module:
            if entry.folded_into is not None or entry.absorbs is not None:
                raise OptionError(
                    f"{names[module]} was compressed as {entry.name} together with "
                    f"{entry.folded_into or entry.absorbs} of the model it was in; save that model"
                )
            entry = replace(entry, name=names[module])
        entries.append(entry)
    rounded = tuple(name for module, name in names.items() if _ROUNDED in vars(module))
    return Plan(entries=tuple(entries), bfloat16=rounded)


def check_applied(model: nn.Module, plan: Plan) -> None:
    """Refuse a plan that does not lead to this model.

    Raises:
        OptionError: names the modules.
    """
    names = {module: name for name, module in model.named_modules()}
    every = dict(model.named_modules(remove_duplicate=False))
    applied = {module: item.entry for module, item in _applied(model)}
    planned = [(entry, every.get(entry.name)) for entry in plan.entries]
    rounded = {module for module in names if _ROUNDED in vars(module)}
    to_round = {name: every.get(name) for name in plan.bfloat16}
    wrong = [
        *_listed(
            "it does not say of {}, which is compressed in the model",
            [names[module] for module in applied if module not in [other for _, other in planned]],
        ),
        *_listed(
            "it says of {}, which is not compressed in the model",
            [entry.name for entry, module in planned if module not in applied],
        ),
        *(
            f"{entry.name} is {_differences(applied[module], entry)}"
            for entry, module in planned
            if module in applied and _differences(applied[module], entry)
        ),
        *_listed(
            "it does not round {}, which is rounded in the model",
            [names[module] for module in rounded if module not in to_round.values()],
        ),
        *_listed(
            "it rounds {}, which is not rounded in the model",
            [name for name, module in to_round.items() if module not in rounded],
        ),
    ]
    if not wrong and [module for _, module in planned] != list(applied):
        wrong.append(f"the order was {', '.join(names[module] for module in applied)}")
    if wrong:
        raise OptionError(
            f"the plan is not the model's: {'; '.join(wrong)}. Give the plans of all rounds, first + second, "
            "or leave plan out: the model knows its own (afm_dist.applied_plan(model))"
        )


def _applied(model: nn.Module) -> Iterator[tuple[nn.Module, _Applied]]:
    """The modules that were compressed, in that order."""
    found = [(module, vars(module).get(_APPLIED)) for module in model.modules()]
    known = [(module, applied) for module, applied in found if applied is not None]
    yield from sorted(known, key=lambda item: item[1].number)


def _listed(sentence: str, names: Sequence[str]) -> list[str]:
    return [sentence.format(", ".join(names))] if names else []


def _differences(ours: PlanEntry, given: PlanEntry) -> str:
    """What of an entry is otherwise in the model, its name apart."""
    return ", ".join(
        f"of {key} {value} (the plan: {vars(given)[key]})"
        for key, value in vars(ours).items()
        if key != "name" and value != vars(given)[key]
    )
