"""What a compressed model knows of itself: which entries of which plans made each of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from afm_dist.compression.config import MethodConfig
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.errors import OptionError

_APPLIED = "_afm_dist_entries"


@dataclass(frozen=True)
class _Applied:
    """An entry, and its number among those of its model."""

    entry: PlanEntry
    number: int


def record_entry(model: nn.Module, original: nn.Module, replacement: nn.Module, entry: PlanEntry) -> None:
    """Note in a module what made it, behind what made the one in whose place it comes."""
    number = max((applied.number for _, applied in _applied(model)), default=0) + 1
    setattr(replacement, _APPLIED, (*vars(original).get(_APPLIED, ()), _Applied(entry, number)))


def applied_plan(model: nn.Module) -> Plan:
    """Give the plan that leads from the uncompressed model to this one: all rounds of compression, in order.

    Args:
        model: Any module, compressed by ``compress_`` or read by ``from_pretrained``; a part of such a
            model, or a model that has it as a part, has a plan with names of its own.

    Raises:
        OptionError: of a part or a whole of the compressed model whose compression changed neighbours, too
            (a table that was folded into a layer): that only the model that declares it can say.
    """
    names = {module: name for name, module in model.named_modules()}
    every = dict(model.named_modules(remove_duplicate=False))
    entries: list[PlanEntry] = []
    for module, applied in _applied(model):
        entry = applied.entry
        if every.get(entry.name) is not module:
            if entry.config.neighbours:
                raise OptionError(
                    f"{names[module]} was compressed as {entry.name} together with "
                    f"{', '.join(entry.config.neighbours)} of the model it was in; save that model"
                )
            entry = replace(entry, name=names[module])
        entries.append(entry)
    return Plan(entries=tuple(entries))


def check_applied(model: nn.Module, plan: Plan) -> None:
    """Refuse a plan that does not lead to this model.

    Raises:
        OptionError: names the modules.
    """
    names = {module: name for name, module in model.named_modules()}
    every = dict(model.named_modules(remove_duplicate=False))
    applied: dict[nn.Module, list[MethodConfig]] = {}
    for module, item in _applied(model):
        applied.setdefault(module, []).append(item.entry.config)
    planned: dict[nn.Module | None, list[MethodConfig]] = {}
    for entry in plan.entries:
        planned.setdefault(every.get(entry.name), []).append(entry.config)
    wrong = [
        *_listed(
            "it does not say of {}, which is compressed in the model",
            [names[module] for module in applied if module not in planned],
        ),
        *_listed(
            "it says of {}, which is not compressed in the model",
            [entry.name for entry in plan.entries if every.get(entry.name) not in applied],
        ),
        *(
            f"{names[module]} is {_differences(ours, planned[module])}"
            for module, ours in applied.items()
            if module in planned and ours != planned[module]
        ),
    ]
    order = [(module, item.entry.config) for module, item in _applied(model)]
    if not wrong and [(every.get(entry.name), entry.config) for entry in plan.entries] != order:
        wrong.append(f"the order was {', '.join(names[module] for module, _ in order)}")
    if wrong:
        raise OptionError(
            f"the plan is not the model's: {'; '.join(wrong)}. Give the plans of all rounds, first + second, "
            "or leave plan out: the model knows its own (afm_dist.applied_plan(model))"
        )


def _applied(model: nn.Module) -> list[tuple[nn.Module, _Applied]]:
    """List the modules that were compressed with what was done to them, in that order."""
    found = [(module, one) for module in model.modules() for one in vars(module).get(_APPLIED, ())]
    return sorted(found, key=lambda item: item[1].number)


def _listed(sentence: str, names: Sequence[str]) -> list[str]:
    return [sentence.format(", ".join(names))] if names else []


def _differences(ours: Sequence[MethodConfig], given: Sequence[MethodConfig]) -> str:
    """Say what is otherwise in the model."""
    if [type(config) for config in ours] != [type(config) for config in given]:
        found, planned = (", then ".join(config.label for config in configs) for configs in (ours, given))
        return f"compressed by {found} (the plan: by {planned})"
    return ", ".join(
        f"of {key} {value} (the plan: {vars(other)[key]})"
        for own, other in zip(ours, given, strict=True)
        for key, value in vars(own).items()
        if value != vars(other)[key]
    )
