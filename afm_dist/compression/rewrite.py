"""Rewriting modules at low rank, on any ``nn.Module``: all that a plan says, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from afm_dist.compression.applied import record_entry, record_rounding
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.registry import compressible, handler_of, irreplaceable, refusal
from afm_dist.compression.rounding import round_rows_, rounded_tensors
from afm_dist.compression.trial import trial
from afm_dist.errors import OptionError
from afm_dist.statistics.collected import CollectedMoments
from afm_dist.statistics.moments import Moments


def compress_(
    model: nn.Module,
    plan: Plan,
    moments: Mapping[str, Moments],
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
        moments: From ``collect_moments`` on this model.
        sensitivity: E[ggᵀ] by the same names, from ``output_sensitivity`` on this model; only the method
            ``weighted`` needs it.

    Returns:
        The same model.

    Raises:
        OptionError: a module that does not exist, cannot be compressed, shares its weights with
            another one (tied weights), is reached by other references than its names, or is smaller than
            its rank; or moments, or the sensitivity, that are missing; or rows to round where there are
            none; or a model that, on a batch of the statistics, does not run any more, does not call a
            replacement, or goes on using weights that were replaced.

    Notes:
        The originals are kept until the last module is rewritten: at most twice the model's memory.
        Moments straight from ``collect_moments`` know a batch, on which the model is tried before and after;
        those from a file do not.
    """
    probe = moments.probe if isinstance(moments, CollectedMoments) else None
    grown: list[str] = []
    with all_or_nothing(model), trial(model, plan, probe):
        for entry in plan.entries:
            before = _bytes(model)
            _rewrite(model, entry, OutputStatistics(moments, sensitivity))
            if _bytes(model) > before:
                grown.append(f"{entry.name} at rank {entry.rank} by {_bytes(model) - before:,} bytes")
        rounded_tensors(model, plan)
    if grown and isinstance(moments, CollectedMoments):
        # Of moments from a file, whoever made the plan has said so.
        warnings.warn(f"the plan makes the model larger: {', '.join(grown)}; lower the ranks", stacklevel=2)
    round_rows_(model, plan)
    record_rounding(model, plan)
    return model


def restructure_(model: nn.Module, plan: Plan) -> nn.Module:
    """Give a model the structure a plan leads to, with values still to be loaded.

    Raises:
        OptionError: as in ``compress_``.
    """
    with all_or_nothing(model):
        for entry in plan.entries:
            _rewrite(model, entry, None)
        rounded_tensors(model, plan)
    record_rounding(model, plan)
    return model


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """After an error every module has the children it had before."""
    before = [(module, dict(module._modules)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, children in before:
            module._modules.clear()
            module._modules.update(children)
        raise


def _rewrite(model: nn.Module, entry: PlanEntry, known: OutputStatistics | None) -> None:
    """Replace one module; by an empty one where nothing is known of its outputs."""
    original = _find(model, entry.name)
    reason = refusal(model, entry.name)
    if reason is not None:
        raise OptionError(f"{entry.name or 'the model'} {reason}")
    handler = handler_of(original)
    parameters = list(original.parameters())
    replacement = handler.build(original, entry).to(parameters[0].device, parameters[0].dtype)
    replacement.train(original.training)
    if not any(parameter.requires_grad for parameter in parameters):
        replacement.requires_grad_(False)
    with torch.no_grad():
        if entry.absorbs is not None:
            term = handler.absorb(model, replacement, original, entry, known)
            reason = irreplaceable(model, entry.absorbs)
            if reason is not None:
                raise OptionError(f"{entry.absorbs} {reason}")
            _replace(model, model.get_submodule(entry.absorbs), term)
        elif known is not None:
            handler.fill(replacement, original, entry, known)
        if entry.folded_into is not None:
            if entry.folded_into in dict(model.named_modules()):
                reason = irreplaceable(model, entry.folded_into)
                if reason is not None:
                    raise OptionError(f"{entry.folded_into} {reason}")
            handler.fold(model, replacement, entry, values=known is not None)
    record_entry(model, original, replacement, entry)
    _replace(model, original, replacement)


def _replace(model: nn.Module, original: nn.Module, replacement: nn.Module) -> None:
    """Under all names that the model has for it."""
    for owner in list(model.modules()):
        for child, module in owner._modules.items():
            if module is original:
                owner._modules[child] = replacement


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _find(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = ", ".join(compressible(model)) or "none"
        raise OptionError(f"the model has no module {name!r}; compressible are: {known}") from None
