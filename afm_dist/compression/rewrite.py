"""Rewriting modules at low rank, on any ``nn.Module``: structure first, then values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.registry import compressible, handler_of
from afm_dist.errors import OptionError
from afm_dist.statistics.moments import Moments


def compress_(model: nn.Module, plan: Plan, moments: Mapping[str, Moments]) -> nn.Module:
    """Rewrite the planned modules of a model in place.

    Args:
        model: Any module; its planned submodules are replaced.
        plan: From ``plan_ranks``, or written by hand.
        moments: From ``collect_moments`` on this model.

    Returns:
        The same model.

    Raises:
        OptionError: a module that does not exist, cannot be compressed, is shared (tied weights)
            or smaller than its rank; or moments that are missing.
    """
    for entry in plan.entries:
        _rewrite(model, entry, moments)
    return model


def restructure_(model: nn.Module, plan: Plan) -> nn.Module:
    """Give a model the structure a plan leads to, with values still to be loaded.

    Raises:
        OptionError: as in ``compress_``.
    """
    for entry in plan.entries:
        _rewrite(model, entry, None)
    return model


def _rewrite(model: nn.Module, entry: PlanEntry, moments: Mapping[str, Moments] | None) -> None:
    """Replace one module; without moments by an empty one."""
    original = _find(model, entry.name)
    handler = handler_of(entry.name, original)
    _refuse_tied(model, entry.name, original)
    parameter = next(original.parameters())
    replacement = handler.build(original, entry).to(parameter.device, parameter.dtype)
    replacement.train(original.training)
    with torch.no_grad():
        if moments is not None:
            handler.fill(replacement, original, entry, moments)
        if entry.folded_into is not None:
            handler.fold(model, replacement, entry, values=moments is not None)
    model.set_submodule(entry.name, replacement)


def _find(model: nn.Module, name: str) -> nn.Module:
    if not name:
        raise OptionError(
            f"the model itself is a {type(model).__name__} and has no parent to replace it in; "
            "wrap it, for example in nn.Sequential"
        )
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = [key for key, module in model.named_modules() if compressible(module)]
        raise OptionError(
            f"the model has no module {name!r}; compressible are: {', '.join(known) or 'none'}"
        ) from None


def _refuse_tied(model: nn.Module, name: str, module: nn.Module) -> None:
    own = {id(parameter): key for key, parameter in module.named_parameters()}
    for other, parameter in model.named_parameters(remove_duplicate=False):
        key = own.get(id(parameter))
        if key is not None and other != f"{name}.{key}":
            raise OptionError(
                f"{name}.{key} is tied to {other}: compressing one would silently untie them; "
                "leave this module out of the plan or untie the weights first"
            )
