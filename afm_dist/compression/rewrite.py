"""Rewriting modules at low rank, on any ``nn.Module``: structure first, then values.

What can be rewritten is a table of handlers, one per module type; a new type is one
``register_handler``. A handler builds the empty replacement (all a checkpoint reader needs) and
fills it from the original and its moments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from afm_dist.compression.factorize import (
    Spectrum,
    TableFactors,
    afm_linear,
    afm_table,
    eigendecompose,
    fold,
    svd_linear,
    svd_table,
)
from afm_dist.compression.layers import LowRankLinear, ProjectedEmbedding
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.ranks import field_key
from afm_dist.embedding import FusedEmbedding
from afm_dist.errors import OptionError
from afm_dist.statistics.moments import Moments

Build = Callable[[Any, PlanEntry], nn.Module]
Fill = Callable[[Any, Any, PlanEntry, Mapping[str, Moments]], None]


@dataclass(frozen=True)
class Handler:
    """How one type of module is compressed.

    Attributes:
        build: The empty replacement of a module, from the module and its plan entry.
        fill: Writes the values: replacement, original, entry, moments.
    """

    build: Build
    fill: Fill


_HANDLERS: dict[type[nn.Module], Handler] = {}


def register_handler(module_type: type[nn.Module], handler: Handler) -> None:
    """Say how a type of module is compressed."""
    _HANDLERS[module_type] = handler


def compressible(module: nn.Module) -> bool:
    """Whether there is a handler for exactly this type of module."""
    return type(module) in _HANDLERS


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
        original, replacement = _replacement(model, entry)
        handler = _HANDLERS[type(original)]
        with torch.no_grad():
            handler.fill(replacement, original, entry, moments)
            if entry.folded_into is not None:
                _fold_values_(model, entry, cast(FusedEmbedding, replacement))
        _replace(model, entry, replacement)
    return model


def restructure_(model: nn.Module, plan: Plan) -> nn.Module:
    """Give a model the structure a plan leads to, with values still to be loaded.

    Raises:
        OptionError: as in ``compress_``.
    """
    for entry in plan.entries:
        _, replacement = _replacement(model, entry)
        if entry.folded_into is not None:
            _fold_structure_(model, entry, cast(FusedEmbedding, replacement))
        _replace(model, entry, replacement)
    return model


def _replacement(model: nn.Module, entry: PlanEntry) -> tuple[nn.Module, nn.Module]:
    original = _find(model, entry.name)
    if not compressible(original):
        kinds = ", ".join(kind.__name__ for kind in _HANDLERS)
        raise OptionError(
            f"{entry.name} is a {type(original).__name__}, which cannot be compressed (only {kinds} can)"
        )
    _refuse_tied(model, entry.name, original)
    replacement = _HANDLERS[type(original)].build(original, entry)
    parameter = next(original.parameters())
    return original, replacement.to(parameter.device, parameter.dtype).train(original.training)


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


def _replace(model: nn.Module, entry: PlanEntry, replacement: nn.Module) -> None:
    parent, _, child = entry.name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)


def _check_width(entry: PlanEntry, width: int) -> None:
    if entry.rank > width:
        raise OptionError(
            f"rank {entry.rank} for {entry.name}: larger than the layer's {width}; lower the rank"
        )


def _spectrum(moments: Mapping[str, Moments], key: str, width: int) -> Spectrum:
    if key not in moments:
        raise OptionError(f"no moments of {key}; collect them with collect_moments(model, data, …) first")
    if moments[key].width != width:
        raise OptionError(
            f"the moments of {key} have width {moments[key].width}, the module has {width} outputs: they are "
            "of another model; collect them with collect_moments(model, data, …) again"
        )
    return eigendecompose(moments[key])


# Linear layers ---------------------------------------------------------------------------------


def _build_linear(original: nn.Linear, entry: PlanEntry) -> LowRankLinear:
    _check_width(entry, original.out_features)
    return LowRankLinear(original.in_features, original.out_features, entry.rank, entry.activation)


def _fill_linear(
    new: LowRankLinear, original: nn.Linear, entry: PlanEntry, moments: Mapping[str, Moments]
) -> None:
    spectrum = _spectrum(moments, entry.name, original.out_features)
    factorize = afm_linear if entry.method == "afm" else svd_linear
    weight = original.weight.cpu()
    bias = None if original.bias is None else original.bias.cpu()
    factors = factorize(weight, bias, spectrum, entry.rank, entry.activation, entry.kappa)
    rank = factors.first_weight.shape[0]
    for target in (new.first.weight, new.second.weight):
        target.zero_()  # an SVD of a layer with fewer inputs than the rank leaves zeros
    new.first.weight[:rank].copy_(factors.first_weight)
    if factors.first_bias is not None:
        new.first.bias.zero_()
        new.first.bias[:rank].copy_(factors.first_bias)
    new.second.weight[:, :rank].copy_(factors.second_weight)
    new.second.bias.copy_(factors.second_bias)


# Embedding tables ------------------------------------------------------------------------------


def _table_factors(
    table: torch.Tensor, key: str, entry: PlanEntry, moments: Mapping[str, Moments]
) -> TableFactors:
    if entry.method == "afm":
        return afm_table(table, _spectrum(moments, key, table.shape[1]), entry.rank)
    return svd_table(table, entry.rank)


def _build_embedding(original: nn.Embedding, entry: PlanEntry) -> ProjectedEmbedding:
    _check_width(entry, original.embedding_dim)
    if original.max_norm is not None:
        raise OptionError(
            f"{entry.name} has max_norm={original.max_norm}: its rows change when they are looked up, "
            "which no fixed projection follows; leave this module out of the plan"
        )
    return ProjectedEmbedding(
        original.num_embeddings, original.embedding_dim, entry.rank, sparse=original.sparse
    )


def _fill_embedding(
    new: ProjectedEmbedding, original: nn.Embedding, entry: PlanEntry, moments: Mapping[str, Moments]
) -> None:
    factors = _table_factors(original.weight.detach().cpu(), entry.name, entry, moments)
    new.codes.weight.copy_(factors.codes)
    new.projection.copy_(factors.projection)
    new.bias.copy_(factors.bias)


def _build_fused(original: FusedEmbedding, entry: PlanEntry) -> FusedEmbedding:
    if original.projection is not None:
        raise OptionError(f"{entry.name} is already compressed; start from the uncompressed model")
    _check_width(entry, original.dim)
    return FusedEmbedding(
        original.names,
        original.cardinalities,
        original.dim,
        code_dim=entry.rank,
        sparse=original.sparse,
    )


def _fill_fused(
    new: FusedEmbedding, original: FusedEmbedding, entry: PlanEntry, moments: Mapping[str, Moments]
) -> None:
    projection, shift = _projection(new)
    for i, field in enumerate(original.names):
        rows = original.rows(i)
        table = original.weight.detach()[rows].cpu()
        factors = _table_factors(table, field_key(entry.name, field), entry, moments)
        new.weight[rows] = factors.codes.to(new.weight)
        projection[i] = factors.projection.to(projection)
        shift[i] = factors.bias.to(shift)


def _projection(table: FusedEmbedding) -> tuple[torch.Tensor, torch.Tensor]:
    assert table.projection is not None
    assert table.bias is not None
    return table.projection, table.bias


# Folding a table's projection into the linear layer that reads it (paper eq. 12) ----------------


def _fold_structure_(model: nn.Module, entry: PlanEntry, table: FusedEmbedding) -> nn.Linear:
    """Let the linear layer read the codes, its input narrowed; returns the original layer."""
    name = cast(str, entry.folded_into)
    linear = _find(model, name)
    declared = getattr(model, "folds", {})
    if not isinstance(linear, nn.Linear) or declared.get(entry.name) != name:
        allowed = ", ".join(f"{source} into {target}" for source, target in declared.items()) or "nothing"
        raise OptionError(
            f"{entry.name} cannot be folded into {name}: that is right only where the layer reads the "
            f"embeddings directly, which {type(model).__name__} declares for {allowed}"
        )
    rest = linear.in_features - len(table.names) * table.dim
    narrow = nn.Linear(len(table.names) * table.code_dim + rest, linear.out_features, bias=True).to(
        linear.weight
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, narrow)
    table.folded = True
    return linear


def _fold_values_(model: nn.Module, entry: PlanEntry, table: FusedEmbedding) -> None:
    wide = _fold_structure_(model, entry, table)
    narrow = cast(nn.Linear, model.get_submodule(cast(str, entry.folded_into)))
    projection, shift = _projection(table)
    T, K = table.dim, table.code_dim
    bias: torch.Tensor = narrow.bias.new_zeros(wide.out_features) if wide.bias is None else wide.bias
    for i in range(len(table.names)):
        columns, bias = fold(wide.weight[:, i * T : (i + 1) * T], bias, projection[i], shift[i])
        narrow.weight[:, i * K : (i + 1) * K] = columns.to(narrow.weight)
    narrow.weight[:, len(table.names) * K :] = wide.weight[:, len(table.names) * T :]
    narrow.bias.copy_(bias)


register_handler(nn.Linear, Handler(build=_build_linear, fill=_fill_linear))
register_handler(nn.Embedding, Handler(build=_build_embedding, fill=_fill_embedding))
register_handler(FusedEmbedding, Handler(build=_build_fused, fill=_fill_fused))
