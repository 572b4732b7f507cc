"""Rewriting the modules of any ``nn.Module``: all that a plan says, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from afm_dist.compression.applied import record_entry
from afm_dist.compression.method import Method
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.registry import compressible, method_for, refusal
from afm_dist.compression.replacing import all_or_nothing, replace_module
from afm_dist.compression.trial import trial
from afm_dist.errors import OptionError
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.statistics import Statistics


def compress_(
    model: nn.Module,
    plan: Plan,
    statistics: Mapping[str, Moments],
    sensitivity: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Rewrite the planned modules of a model in place; when one cannot be, the model stays as it was.

    A module that the model holds under several names is replaced under all of them. What was frozen
    stays frozen. Optimizers and wrappers (``DistributedDataParallel``) made before hold the old
    parameters: make them afterwards.

    Args:
        model: Any module; its planned submodules are replaced.
        plan: From ``plan_ranks``, or written by hand: that is done also where it makes the model larger, with
            a warning.
        statistics: Of this model: a ``Statistics``, or the moments alone, from ``collect_moments``.
        sensitivity: E[ggᵀ] by the same names, from ``output_sensitivity`` on this model, where a method needs
            it and ``statistics`` are the moments alone.

    Returns:
        The same model.

    Raises:
        OptionError: a module that does not exist, cannot be compressed, shares its weights with
            another one (tied weights), is reached by other references than its names, or does not fit its
            config; or statistics that are missing; or a model that, on a batch of the statistics, does not
            run any more, does not call a replacement, or goes on using weights that were replaced.

    Notes:
        The originals are kept until the last module is rewritten: at most twice the model's memory.
        Moments straight from ``collect_moments`` know a batch, on which the model is tried before and after;
        those from a file do not.
    """
    _compress(model, plan, Statistics.of(statistics, sensitivity), carried=False)
    return model


def compress_carrying_(model: nn.Module, plan: Plan, statistics: Statistics) -> Statistics:
    """Do what ``compress_`` does, and give the statistics of what the modules became.

    A budget that chooses among methods that stack on this plan needs them.

    Args:
        model: As in ``compress_``.
        plan: As in ``compress_``.
        statistics: Of this model.

    Returns:
        Of modules that were replaced by what says so (``Method.carried``), of their codes.

    Raises:
        OptionError: as in ``compress_``.
    """
    return _compress(model, plan, statistics, carried=True)


def _compress(model: nn.Module, plan: Plan, known: Statistics, *, carried: bool) -> Statistics:
    """Rewrite a model, and give what is known afterwards; of what nobody stacks on only with ``carried``."""
    fresh, grown = known.bytes_of is not None, []
    with all_or_nothing(model), trial(model, plan, known.probe):
        sizes = [stored_bytes(model, Plan())]
        for i, entry in enumerate(plan.entries):
            stacked = carried or any(_concerns(later, entry.name) for later in plan.entries[i + 1 :])
            known = _rewrite(model, entry, known, stacked=stacked) or known
            sizes.append(stored_bytes(model, Plan(entries=plan.entries[: i + 1])))
            if sizes[-1] > sizes[-2]:
                grown.append(f"{entry.name} {entry.config.in_words} by {sizes[-1] - sizes[-2]:,} bytes")
        stored_dtypes(model, plan)
    if grown and fresh:
        # Of moments from a file, whoever made the plan has said so.
        warnings.warn(f"the plan makes the model larger: {', '.join(grown)}; lower the ranks", stacklevel=3)
    finish_(model, plan)
    _record_values(model, plan)
    return known


def restructure_(model: nn.Module, plan: Plan) -> nn.Module:
    """Give a model the structure a plan leads to, with values still to be loaded.

    Raises:
        OptionError: as in ``compress_``.
    """
    with all_or_nothing(model):
        for entry in plan.entries:
            _rewrite(model, entry, None)
        stored_dtypes(model, plan)
    _record_values(model, plan)
    return model


def stored_dtypes(model: nn.Module, plan: Plan) -> dict[str, torch.dtype]:
    """List the tensors that checkpoints hold in another dtype than a model has them, and that dtype.

    Args:
        model: To which the plan was applied.
        plan: What was done to it.

    Returns:
        By the names of the tensors in the model; a tied tensor is there under each of its names.

    Raises:
        OptionError: an entry names a module that is not there, or does not fit it.
    """
    found: dict[str, torch.dtype] = {}
    for entry in plan.entries:
        for method in _method_after(model, entry):
            found |= method.stored_dtypes(model, entry.name, entry.config)
    return found


@torch.no_grad()
def finish_(model: nn.Module, plan: Plan) -> None:
    """Let a model have the numbers that it would have from a checkpoint.

    Args:
        model: To which the plan was applied, and which may have been trained since.
        plan: What was done to it.
    """
    for entry in plan.entries:
        for method in _method_after(model, entry):
            method.finish(model, entry.name, entry.config)


def _method_after(model: nn.Module, entry: PlanEntry) -> list[Method[Any, Any]]:
    """Find the method of an entry that was applied: none, where it made another type of module."""
    method = method_for(entry.config, _find(model, entry.name))
    return [] if method is None else [method]


def _record_values(model: nn.Module, plan: Plan) -> None:
    """Note the entries that change values only, once nothing can fail any more."""
    for entry in plan.entries:
        for method in _method_after(model, entry):
            if not method.replaces:
                record_entry(model, model.get_submodule(entry.name), model.get_submodule(entry.name), entry)


def _concerns(entry: PlanEntry, name: str) -> bool:
    """Tell whether an entry is for a module, or for a part of it."""
    return entry.name == name or entry.name.startswith(f"{name}.")


def _rewrite(
    model: nn.Module, entry: PlanEntry, known: Statistics | None, *, stacked: bool = False
) -> Statistics | None:
    """Replace one module; by an empty one where nothing is known of its outputs.

    Returns:
        What is known after it; with ``stacked`` also of what the module became.
    """
    name, config = entry.name, entry.config
    original = _find(model, name)
    reason = refusal(model, name, config)
    if reason is not None:
        raise OptionError(f"{name or 'the model'} {reason}")
    method = method_for(config, original)
    assert method is not None
    replacement = method.build(name, original, config)
    if replacement is original:
        return known
    parameters = list(original.parameters())
    if parameters:
        replacement = replacement.to(parameters[0].device, parameters[0].dtype)
    replacement.train(original.training)
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        replacement.requires_grad_(False)
    with torch.no_grad():
        filled = method.connect(model, replacement, name, original, config, known)
        if known is not None:
            if not filled:
                method.fill(replacement, name, original, config, known)
            if stacked:
                known = method.carried(name, replacement, original, config, known)
    record_entry(model, original, replacement, entry)
    replace_module(model, original, replacement)
    return known


def stored_bytes(model: nn.Module, done: Plan) -> int:
    """Count the bytes of the tensors that a checkpoint would hold, tied ones once.

    Args:
        model: To which a plan was applied.
        done: The plan.
    """
    short = stored_dtypes(model, done)
    state = model.state_dict(keep_vars=True)
    sizes = {
        id(tensor): tensor.numel() * short.get(name, tensor.dtype).itemsize
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    return sum(sizes.values())


def _find(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = ", ".join(compressible(model)) or "none"
        raise OptionError(f"the model has no module {name!r}; compressible are: {known}") from None
