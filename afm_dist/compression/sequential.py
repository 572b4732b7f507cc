"""Compressing layers one after the other, each by what it gives once those before it are compressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from afm_dist.compression.plan import Plan
from afm_dist.compression.registry import method_for
from afm_dist.compression.replacing import all_or_nothing
from afm_dist.compression.rewrite import compress_
from afm_dist.statistics.moments import Moments


def compress_sequentially_(
    model: nn.Module,
    plan: Plan,
    collect: Callable[[nn.Module, str], Mapping[str, Moments]],
    sensitivity: Mapping[str, Tensor] | None = None,
) -> dict[str, Moments]:
    """Rewrite the planned modules in place and in the plan's order, with moments taken in between.

    Behind compressed layers the outputs of a layer are others than in the uncompressed model: their
    variance lies in fewer directions. The components kept are those of the outputs ỹ that there are now,
    E‖ỹ − ŷ‖² is least; the factors still mimic the layer that was trained. So a layer is not
    bent to undo the errors of those before it (which would take the moments of both models' outputs
    together, a regression of y on what is left of it); that is left to fine-tuning.

    Args:
        model: Any module; when one of its modules cannot be compressed it stays as it was.
        plan: Modules in the order in which the model calls them.
        collect: Gives the moments of the outputs of a module, by name, in the model as it is when it is
            called; for example with ``collect_moments(model, data, [name])``.
        sensitivity: As in ``compress_``.

    Returns:
        All those moments. ``compress_`` with them does the same to the same model.

    Raises:
        OptionError: as in ``compress_``.
    """
    moments: dict[str, Moments] = {}
    values = []
    with all_or_nothing(model):
        for entry in plan.entries:
            method = method_for(entry.config, model.get_submodule(entry.name))
            if method is None or method.replaces:
                own = collect(model, entry.name)
                compress_(model, Plan(entries=(entry,)), own, sensitivity)
                moments |= own
            else:
                values.append(entry)
        compress_(model, Plan(entries=tuple(values)), moments, sensitivity)
    return moments
