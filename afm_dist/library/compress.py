"""Everything in one call: statistics, plan, rewrite."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from afm_dist.compression.config import MethodConfig
from afm_dist.compression.plan import Plan
from afm_dist.compression.registry import compressible
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError
from afm_dist.library.budget import Budget, within
from afm_dist.statistics.collect import collect_statistics
from afm_dist.statistics.observe import ForwardFn, Targets
from afm_dist.statistics.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A smaller model, and what was done.

    Attributes:
        model: The smaller one, on the device and in the mode of the original.
        plan: What became of which module; ``left_alone`` says of the others why they stayed.
        statistics: That the plan follows from.
        bytes_before: Of the tensors of the original, as a checkpoint holds them.
        bytes_after: Of the smaller one.
        error: Predicted mean square of the change of the logit, before fine-tuning, to first order.
    """

    model: nn.Module
    plan: Plan
    statistics: Statistics
    bytes_before: int
    bytes_after: int
    error: float

    def __str__(self) -> str:
        """Say what was done, a line a module."""
        lines = [
            f"{self.bytes_before:,} bytes to {self.bytes_after:,}, "
            f"{self.bytes_before / self.bytes_after:.3g} times smaller; predicted root mean square change of "
            f"the logit {self.error**0.5:.3g}"
        ]
        lines += [
            f"  {entry.name}: {entry.config.label}, {entry.config.in_words}" for entry in self.plan.entries
        ]
        lines += [f"  {name}: left as it is ({reason})" for name, reason in self.plan.left_alone.items()]
        return "\n".join(lines)


def compress(
    model: nn.Module,
    data: str | Manifest | Iterable[Any],
    *,
    target_ratio: float | None = None,
    target_bytes: int | str | None = None,
    targets: Targets | None = None,
    methods: Sequence[MethodConfig] | None = None,
    forward_fn: ForwardFn | None = None,
) -> Compressed:
    """Make a smaller copy of a model, with the least predicted change of the logit for its size.

    Fine-tune it afterwards: the prediction, and what you measure of the copy, is from before that.

    Args:
        model: Any module; stays as it is.
        data: Batches, or a dataset: see ``collect_statistics``. Some thousand rows tell enough of a layer.
        target_ratio: How many times smaller.
        target_bytes: Or how large, as in ``Budget``.
        targets: Name patterns or types of modules that may be compressed; None: all that can be.
        methods: Configs to choose among, but for what is chosen; None: all registered methods that predict
            their error.
        forward_fn: Called as ``forward_fn(model, batch)``, returns the logits (B,).

    Returns:
        The copy, and what was done to it.

    Raises:
        OptionError: no target size or one that is not to be met, a model that cannot be copied or has nothing
            to compress, and as ``collect_statistics`` and ``compress_``.
        DataError: as ``collect_statistics``.
    """
    budget = Budget(target_bytes, target_ratio)
    if targets is None:
        targets = compressible(model)
        if not targets:
            raise OptionError("the model has no module that could be compressed")
    statistics = collect_statistics(model, data, targets, forward_fn=forward_fn)
    found = within(statistics, budget, methods, model)
    try:
        smaller = copy.deepcopy(model)
    except Exception as error:
        raise OptionError(
            f"the model cannot be copied ({error}): compress it in place, with collect_statistics, plan and "
            "compress_"
        ) from error
    compress_(smaller, found.plan, statistics)
    return Compressed(
        model=smaller,
        plan=found.plan,
        statistics=statistics,
        bytes_before=found.bytes_before,
        bytes_after=found.bytes,
        error=found.error,
    )
