"""What becomes of a model's modules so that it fits into a budget of bytes, of any ``nn.Module``.

Knows no method: each registered one says what it could do (``Method.examples``, ``Method.candidates``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from afm_dist.compression.allocate import Choice, front
from afm_dist.compression.budget import parse_bytes
from afm_dist.compression.config import MethodConfig
from afm_dist.compression.method import Method
from afm_dist.compression.outline import Outline
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.registry import method_for, methods_for
from afm_dist.errors import OptionError
from afm_dist.statistics.statistics import Statistics

STEPS = "collect them with collect_statistics(model, data, targets) in this process"


@dataclass(frozen=True)
class Budget:
    """How large a model may become: its parameters and buffers, as a checkpoint stores them.

    Attributes:
        size: Bytes, as a number or as text with a unit (``"100MB"``, ``"1.5GiB"``).
        ratio: Instead of it, how many times smaller than now.
    """

    size: int | str | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.size is None) == (self.ratio is None):
            raise OptionError('Budget: give either a size, Budget("100MB"), or a ratio, Budget(ratio=5)')
        if self.ratio is not None and not 1 < self.ratio < math.inf:
            raise OptionError(f"Budget(ratio={self.ratio}): must be more than 1, and finite")
        if self.size is not None:
            parse_bytes(str(self.size))

    def bytes(self, now: int) -> int:
        """Count the bytes that are allowed of a model that has so many."""
        return parse_bytes(str(self.size)) if self.ratio is None else int(now / self.ratio)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The plan with the least predicted error within a budget.

    Attributes:
        plan: What becomes of the modules.
        bytes_before: Of the whole model now.
        bytes: Of the whole model, once it is done.
        error: Predicted mean square of the change of the logit, to first order.
    """

    plan: Plan
    bytes_before: int
    bytes: int
    error: float


def within(
    statistics: Statistics,
    budget: Budget,
    methods: Sequence[MethodConfig] | None = None,
    model: nn.Module | None = None,
) -> Proposal:
    """Choose for each module what loses least, such that the model fits into a budget.

    The predicted errors of the modules are added up, as if they were not correlated. The fields of a table
    have one choice in common.

    Args:
        statistics: With the sensitivity, from ``collect_statistics``.
        budget: How large the model may become.
        methods: Configs to choose among, but for what is chosen: of ``LowRank(rank=1)`` the rank. None: all
            that the registered methods give as examples, as far as they predict their error.
        model: Of the statistics: methods whose choices follow from the values of a module (quantised tables)
            are chosen among only where it is given.

    Raises:
        OptionError: the statistics know neither the shapes of the model nor the sensitivity, the model fits
            already, or it cannot be made so small.
    """
    outline = statistics.bytes_of
    if not isinstance(outline, Outline):
        raise OptionError(f"a budget needs the shapes of the model, which these statistics lack; {STEPS}")
    allowed = budget.bytes(outline.bytes)
    if allowed >= outline.bytes:
        raise OptionError(
            f"a budget of {allowed:,} bytes: the model has {outline.bytes:,}, nothing needs to be "
            "compressed; give less"
        )
    left: dict[str, str] = {}
    choices: dict[str, list[Choice]] = {}
    for name, empty in outline.targets.items():
        reason = _unknown(name, statistics)
        module = empty if model is None else model.get_submodule(name)
        found = [] if reason else _choices(name, module, statistics, outline, methods)
        if not found:
            left[name] = reason or "no method predicts what it would lose, or makes it smaller"
            continue
        choices[name] = [*found, Choice(None, 0, 0.0)]
    best = front(choices).best(allowed - outline.bytes)
    if best is None:
        least = outline.bytes + sum(min(choice.cost for choice in own) for own in choices.values())
        raise OptionError(
            f"a budget of {allowed:,} bytes: {least:,} is the least that {outline.bytes:,} can become by "
            f"compressing {', '.join(choices) or 'nothing'}; give more, or more targets to collect_statistics"
        )
    left |= {name: "the budget has room for it" for name, choice in best.items() if choice.value is None}
    entries = [PlanEntry(name, own.value) for name, own in best.items() if own.value is not None]
    return Proposal(
        plan=Plan(entries=tuple(entries), left_alone=left),
        bytes_before=outline.bytes,
        bytes=outline.bytes + sum(choice.cost for choice in best.values()),
        error=sum(choice.error for choice in best.values()),
    )


def _unknown(name: str, statistics: Statistics) -> str | None:
    """Say what is not known of a module that a choice would need; None: nothing."""
    keys = statistics.keys_of(name)
    if any(statistics[key].count == 0 for key in keys):
        return "the model was never called through it"
    if any(statistics.measured_sensitivity(key) is None for key in keys):
        return "the sensitivity of the logit to it was not measured, or there is none"
    return None


def _choices(
    name: str,
    module: nn.Module,
    statistics: Statistics,
    outline: Outline,
    methods: Sequence[MethodConfig] | None,
) -> list[Choice]:
    def cost(config: MethodConfig) -> int:
        sizes = outline(PlanEntry(name, config))
        if sizes is None:
            raise OptionError(f"{name} cannot be compressed {config.in_words}")
        before, after = sizes
        return after - before

    found: list[Choice] = []
    variants: dict[Method[Any, Any], set[str]] = {}
    for method, config in _prototypes(module, methods):
        labels = variants.setdefault(method, set())
        if methods is None and len(labels) > 1:
            # Its choices from one example are of all its variants already.
            continue
        try:
            candidates = method.candidates(name, module, config, statistics, cost, by_field=False)
        except OptionError:
            # It does not predict its error, or does not fit this module.
            continue
        own = [choice for choice in candidates.whole if choice.cost < 0]
        if len({choice.value.label for choice in own}) > 1:
            labels |= {choice.value.label for choice in own}
        found += own
    return found


def _prototypes(
    module: nn.Module, methods: Sequence[MethodConfig] | None
) -> Iterator[tuple[Method[Any, Any], MethodConfig]]:
    """Yield the methods for a module, each with a config that says all but what is chosen."""
    if methods is None:
        for method in methods_for(module):
            for config in method.examples(module):
                yield method, config
        return
    for config in methods:
        found = method_for(config, module)
        if found is not None:
            yield found, config
