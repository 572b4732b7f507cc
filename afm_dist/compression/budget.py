"""What becomes of which module within a budget of bytes: what each choice costs and saves, the best that fit.

Knows no method: each says what can be chosen (``Method.candidates``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.compression.allocate import Choice, front
from afm_dist.compression.config import MethodConfig
from afm_dist.compression.method import Candidates, Method
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.registry import method_for
from afm_dist.compression.rewrite import restructure_, stored_dtypes
from afm_dist.errors import OptionError
from afm_dist.large_tables.stored import Described, header, header_bytes_at_most
from afm_dist.modules.tensors import named_tensors
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.statistics import Statistics
from afm_dist.storage.content import json_text

# Combinations kept after each merge where every field is one: of dozens of fronts, in a second or two.
FIELDS_FRONT = 1 << 13
EVEN: Mapping[str, float] = MappingProxyType({})
NOTHING = Plan()

_UNITS = {"": 1, "B": 1} | {
    prefix + unit: base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k", "M", "G", "T"), 1)
}


def parse_bytes(text: str) -> int:
    """Parse a number of bytes with or without a unit: ``100MB``, ``1.5 GiB``, ``2000000``.

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
    """The best choices within a budget.

    Attributes:
        configs: By module; None leaves one as it is.
        always: What is done besides, whatever is chosen.
        bytes: Of the model's tensors.
        error: Predicted mean square of the change of the logit, before fine-tuning, to first order.
        errors: What each module adds to it.
    """

    configs: Mapping[str, MethodConfig | None]
    always: Plan
    bytes: int
    error: float
    errors: Mapping[str, float]

    @property
    def chosen(self) -> Plan:
        """Give the plan of what was chosen, without what is done besides."""
        return _chosen(self.configs)

    @property
    def plan(self) -> Plan:
        """Give the plan that does it."""
        return self.chosen + self.always


class Modelled:
    """A model, and what plans make of its size.

    Args:
        config: The model; uncompressed, or with the plan that was applied.
        plan: Of each module how it would be compressed, but for what is chosen.
        always: What is done besides, whatever is chosen.
        model: With its values, for methods whose candidates follow from them; None: there are none.
    """

    def __init__(
        self, config: ModelConfig, plan: Plan, always: Plan = NOTHING, model: nn.Module | None = None
    ) -> None:
        self.config, self.plan, self.always = config, plan, always
        self._model = _empty(config, config.plan) if model is None else model
        self.now = self.bytes()

    def bytes(self, *entries: PlanEntry) -> int:
        """Count the bytes of all tensors with these entries, and what is always done."""
        return structure_bytes(self.config, self.config.plan + Plan(entries=entries) + self.always)

    def cost(self, module: str, config: MethodConfig) -> int:
        """Count the bytes more, or fewer, than now with a module compressed."""
        return self.bytes(PlanEntry(module, config)) - self.now

    def method(self, entry: PlanEntry) -> tuple[Method[Any, Any], nn.Module]:
        """Find the method of an entry, and its module.

        Raises:
            OptionError: the method does not take modules of that type.
        """
        module = self._model.get_submodule(entry.name)
        method = method_for(entry.config, module)
        if method is None:
            raise OptionError(
                f"{entry.name} is a {type(module).__name__}, which cannot be compressed by {entry.config.tag}"
            )
        return method, module

    def candidates(self, entry: PlanEntry, known: Statistics, *, by_field: bool) -> Candidates:
        """List the ways to compress the module of an entry."""
        method, module = self.method(entry)

        def cost(config: MethodConfig) -> int:
            return self.cost(entry.name, config)

        return method.candidates(entry.name, module, entry.config, known, cost, by_field=by_field)

    def smallest(self, entry: PlanEntry, *, by_field: bool) -> int:
        """Count the bytes more, or fewer, than now with a module as small as it becomes; 0 if it grows."""
        method, module = self.method(entry)
        configs = method.smallest(module, entry.config, by_field=by_field)
        return min(0, *(self.cost(entry.name, config) for config in configs))

    def longest(self, *, by_field: bool) -> Plan:
        """Give the plan of all candidates that takes the most words to describe."""
        entries = []
        for entry in self.plan.entries:
            method, module = self.method(entry)
            entries.append(replace(entry, config=method.longest(module, entry.config, by_field=by_field)))
        return Plan(entries=tuple(entries)) + self.always


def allocate(
    config: ModelConfig,
    plan: Plan,
    statistics: Statistics,
    budget: int,
    *,
    always: Plan = NOTHING,
    by_field: bool = False,
    emphasis: Mapping[str, float] = EVEN,
    model: nn.Module | None = None,
) -> Allocation:
    """Choose what becomes of some modules with the least error, such that the whole model fits into a budget.

    The least to within the thinning of the fronts (``FRONT``, ``FIELDS_FRONT``); field by field no more
    than with one choice for all.

    The errors of several modules are added up, as if they were not correlated. What a ReLU between the
    factors of a layer cuts is not among them.

    Args:
        config: The model; uncompressed, or with the plan that was applied.
        plan: Of each module how it would be compressed, but for what is chosen (a rank, for example).
        statistics: Of the modules' outputs, with the sensitivity.
        budget: Bytes of all tensors of the model.
        always: What is done besides, whatever is chosen.
        by_field: Whether the fields of a table are chosen one by one, too.
        emphasis: How many times its error a module counts in the choice; 1 where none is given.
        model: What ``config`` describes, with its values: methods whose candidates follow from these need it.

    Raises:
        OptionError: the budget is less than the smallest the model can become, or no error is predicted
            for an entry's method.
    """
    allocator = Allocator(config, plan, statistics, always=always, model=model)
    return allocator.allocate(budget, by_field=by_field, emphasis=emphasis)


class Allocator:
    """Allocates budgets of one model; what can be chosen is found once, which may take fits to all rows.

    Args:
        config: As in ``allocate``, with the other arguments.
        plan: Of each module how it would be compressed, but for what is chosen.
        statistics: Of the modules' outputs.
        always: What is done besides.
        model: With its values.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: Plan,
        statistics: Statistics,
        *,
        always: Plan = NOTHING,
        model: nn.Module | None = None,
    ) -> None:
        self._modelled = Modelled(config, plan, always, model)
        self._statistics = statistics
        self._found: dict[bool, dict[str, Candidates]] = {}

    def allocate(
        self, budget: int, *, by_field: bool = False, emphasis: Mapping[str, float] = EVEN
    ) -> Allocation:
        """Choose what becomes of the modules.

        Args:
            budget: Bytes of all tensors of the model.
            by_field: Whether the fields of a table are chosen one by one, too.
            emphasis: How many times its error a module counts in the choice.

        Raises:
            OptionError: as in ``allocate``.
        """
        modelled = self._modelled
        _check_budget(modelled, budget, besides=0, by_field=by_field)
        found, spare = self._candidates(by_field), budget - modelled.now
        picked = [_pick_whole(found, spare, emphasis)]
        if by_field:
            # Among them are equal choices for all fields; a thinned front may have lost the best of those.
            picked.append(_pick_fields(found, spare, emphasis))
        best = min(
            filter(None, picked),
            key=lambda choice: sum(emphasis.get(name, 1.0) * error for name, (_, error) in choice.items()),
        )
        configs = {name: own for name, (own, _) in best.items()}
        errors = {name: error for name, (_, error) in best.items()}
        return Allocation(
            configs=configs,
            always=modelled.always,
            bytes=modelled.bytes(*_chosen(configs).entries),
            error=sum(errors.values()),
            errors=errors,
        )

    def _candidates(self, by_field: bool) -> Mapping[str, Candidates]:
        """List what can be chosen; of what was listed field by field, the tables as a whole are a part."""
        if not by_field and True in self._found:
            return self._found[True]
        if by_field not in self._found:
            self._found[by_field] = {
                entry.name: self._modelled.candidates(entry, self._statistics, by_field=by_field)
                for entry in self._modelled.plan.entries
            }
        return self._found[by_field]


# By module: what becomes of it, and the error of that.
_Picked = Mapping[str, tuple[MethodConfig | None, float]]


def _pick_whole(found: Mapping[str, Candidates], spare: int, emphasis: Mapping[str, float]) -> _Picked | None:
    """Choose once for each module; None where nothing costs so little. ``spare`` may be negative."""
    choices = {name: _weighed(_with_none(own.whole), emphasis.get(name, 1.0)) for name, own in found.items()}
    best = front(choices).best(spare)
    if best is None:
        return None
    return {name: (choice.value.value, choice.value.error) for name, choice in best.items()}


def _pick_fields(
    found: Mapping[str, Candidates], spare: int, emphasis: Mapping[str, float]
) -> _Picked | None:
    """Choose for each field of the tables, and once for each other module; None likewise."""
    parts: dict[str, Sequence[Choice]] = {}
    for name, own in found.items():
        times = emphasis.get(name, 1.0)
        if own.fields is None:
            parts[name] = _weighed(_with_none(own.whole), times)
            continue
        spare -= own.base
        parts |= {field_key(name, field): _weighed(choices, times) for field, choices in own.fields.items()}
    best = front(parts, limit=FIELDS_FRONT).best(spare)
    if best is None:
        return None
    picked: dict[str, tuple[MethodConfig | None, float]] = {}
    for name, own in found.items():
        if own.fields is None:
            choice = best[name].value
            picked[name] = (choice.value, choice.error)
            continue
        assert own.combine is not None
        chosen = {field: best[field_key(name, field)].value for field in own.fields}
        config = own.combine({field: choice.value for field, choice in chosen.items()})
        picked[name] = (config, sum(choice.error for choice in chosen.values()))
    return picked


def _with_none(choices: Sequence[Choice]) -> list[Choice]:
    """Add the choice to leave a module as it is."""
    return [*choices, Choice(None, 0, 0.0)]


def _weighed(choices: Sequence[Choice], times: float) -> list[Choice]:
    """Count the errors of some choices so many times; each choice's value is the one it was."""
    return [Choice(choice, choice.cost, times * choice.error) for choice in choices]


def _chosen(configs: Mapping[str, MethodConfig | None]) -> Plan:
    """Give the plan of what is not left as it is."""
    return Plan(
        entries=tuple(PlanEntry(name, config) for name, config in configs.items() if config is not None)
    )


def predicted_error(config: ModelConfig, plan: Plan, statistics: Statistics) -> float:
    """Predict the mean square change of the logit by a plan whose configs are candidates of their methods.

    What is no candidate, as it saves nothing, is taken to lose nothing.

    Args:
        config: The uncompressed model.
        plan: The plan.
        statistics: Of the modules' outputs, with the sensitivity.
    """
    modelled, total = Modelled(config, plan), 0.0
    for entry in plan.entries:
        choices = modelled.candidates(entry, statistics, by_field=False).whole
        total += sum(choice.error for choice in choices if choice.value == entry.config)
    return total


def check_budget(
    config: ModelConfig,
    plan: Plan,
    budget: int,
    *,
    always: Plan = NOTHING,
    besides: int = 0,
    by_field: bool = False,
) -> None:
    """Refuse a budget that nothing can meet; needs no data.

    Args:
        config: The uncompressed model.
        plan: As in ``allocate``.
        budget: Bytes that are allowed.
        always: As in ``allocate``.
        besides: Bytes that are needed besides tensors.
        by_field: As in ``allocate``.

    Raises:
        OptionError: says what is possible.
    """
    _check_budget(Modelled(config, plan, always), budget, besides=besides, by_field=by_field)


def _check_budget(model: Modelled, budget: int, *, besides: int, by_field: bool) -> None:
    least = _least(model, by_field) + besides
    if budget < least:
        names = ", ".join(entry.name for entry in model.plan.entries)
        raise OptionError(
            f"a budget of {budget:,} bytes: {least:,} is the least this model can "
            f"become by compressing {names}; give more to --target-bytes, or less to --target-ratio"
        )


def least_bytes(config: ModelConfig, plan: Plan, *, always: Plan = NOTHING, by_field: bool = False) -> int:
    """Count the bytes of all tensors of the smallest model that choices can make.

    Args:
        config: The uncompressed model.
        plan: As in ``allocate``.
        always: As in ``allocate``.
        by_field: As in ``allocate``.
    """
    return _least(Modelled(config, plan, always), by_field)


def _least(model: Modelled, by_field: bool) -> int:
    return model.now + sum(model.smallest(entry, by_field=by_field) for entry in model.plan.entries)


def structure_bytes(config: ModelConfig, plan: Plan) -> int:
    """Count the bytes of a model's stored tensors once a plan is applied; nothing is allocated."""
    return sum(tensor.nbytes for tensor in _described(config, plan).values())


def description_bytes(config: ModelConfig, plan: Plan) -> int:
    """Count the bytes of a checkpoint besides its tensors: config, plan, and the layout of the file.

    Args:
        config: The uncompressed model.
        plan: What is done to it.
    """
    return _text_bytes(config, plan) + len(header(_described(config, plan)))


def _text_bytes(config: ModelConfig, plan: Plan) -> int:
    """Count the bytes of ``config.json``."""
    return len(json_text(replace(config, plan=config.plan + plan).to_json()).encode())


def most_description_bytes(
    config: ModelConfig, plan: Plan, *, always: Plan = NOTHING, by_field: bool = False
) -> int:
    """Count the same at most, whatever is chosen.

    Args:
        config: The uncompressed model.
        plan: As in ``allocate``.
        always: As in ``allocate``.
        by_field: As in ``allocate``.
    """
    longest = Modelled(config, plan, always).longest(by_field=by_field)
    described = _described(config, config.plan + longest)
    # No offset in the file of what is chosen has more digits than the largest of these.
    end = max(structure_bytes(config, config.plan), sum(tensor.nbytes for tensor in described.values()))
    return _text_bytes(config, longest) + header_bytes_at_most(described, end)


def _empty(config: ModelConfig, plan: Plan) -> nn.Module:
    """Give a model without values, to which a plan was applied."""
    with torch.device("meta"):
        model = config.build()
        restructure_(model, plan)
    return model


def _described(config: ModelConfig, plan: Plan) -> dict[str, Described]:
    """Describe the tensors of a checkpoint, by name."""
    model = _empty(config, plan)
    stored = stored_dtypes(model, plan)
    return {
        name: Described(shape=tuple(tensor.shape), dtype=stored.get(name, tensor.dtype))
        for name, tensor in named_tensors(model).items()
    }
