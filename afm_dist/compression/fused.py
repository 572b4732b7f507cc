"""How the fused table of this library's models is compressed, and folded into the layer behind it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from afm_dist.compression.absorb import first_order_of, joint_factors
from afm_dist.compression.factorize import fold
from afm_dist.compression.handler import ALREADY_COMPRESSED, Handler, Observation, check_width
from afm_dist.compression.methods import table_factors
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import PlanEntry
from afm_dist.compression.ranks import field_key
from afm_dist.embedding import FusedEmbedding
from afm_dist.errors import OptionError
from afm_dist.first_order import CodedLinearTerm
from afm_dist.grouped_embedding import GroupedEmbedding

Narrow = FusedEmbedding | GroupedEmbedding


class FusedHandler(Handler[FusedEmbedding]):
    """Each field has moments, a projection and a bias of its own; the rank is common or its own, too."""

    makes = (GroupedEmbedding,)

    def refusal(self, module: FusedEmbedding) -> str | None:
        """A table with projections."""
        return None if module.projection is None else ALREADY_COMPRESSED

    def widths(self, name: str, module: FusedEmbedding) -> Mapping[str, int]:
        """One for each field."""
        return {field_key(name, field): module.dim for field in module.names}

    def observe(
        self, name: str, module: FusedEmbedding, output: tuple[Tensor, Tensor], *args: Any, **kwargs: Any
    ) -> Iterator[Observation]:
        """Each field's embeddings; they are narrow, so float64 costs little and agrees with the counts."""
        _, vectors = output
        for i, field in enumerate(module.names):
            yield Observation(field_key(name, field), vectors[:, i].double())

    def build(self, module: FusedEmbedding, entry: PlanEntry) -> Narrow:
        """A narrow fused table with projections, or one for each rank."""
        width = module.dim + (entry.absorbs is not None)
        if entry.ranks is not None:
            _check_fields(module, entry, entry.ranks, width)
            ranks = [entry.ranks[field] for field in module.names]
            return GroupedEmbedding(
                module.names, module.cardinalities, module.dim, ranks, sparse=module.sparse
            )
        check_width(entry, width)
        return FusedEmbedding(
            module.names, module.cardinalities, module.dim, code_dim=entry.rank, sparse=module.sparse
        )

    def fill(self, new: Narrow, module: FusedEmbedding, entry: PlanEntry, known: OutputStatistics) -> None:
        """Factors by the entry's method, field by field."""
        for i, field in enumerate(module.names):
            table = module.weight.detach()[module.rows(i)].cpu()
            factors = table_factors(table, field_key(entry.name, field), entry, entry.rank_of(field), known)
            part = new.factors(i)
            part.codes.copy_(factors.codes)
            part.projection.copy_(factors.projection)
            part.bias.copy_(factors.bias)

    def absorb(
        self,
        model: nn.Module,
        new: Narrow,
        module: FusedEmbedding,
        entry: PlanEntry,
        known: OutputStatistics | None,
    ) -> CodedLinearTerm:
        """As declared by the model in ``absorbs``."""
        name = cast(str, entry.absorbs)
        term = first_order_of(model, entry.name, name)
        coded = CodedLinearTerm(len(new.names), new.code_shape, term.numeric).train(term.training)
        for parameter in (coded.projection, coded.bias):
            parameter.requires_grad_(term.weight.requires_grad)
        if known is None:
            return coded
        weights = coded.projection.view(-1)
        for i, field in enumerate(module.names):
            factors = joint_factors(module, term, i, field_key(entry.name, field), entry, known)
            part = new.factors(i)
            part.codes.copy_(factors.codes)
            part.projection.copy_(factors.projection)
            part.bias.copy_(factors.bias)
            weights[new.code_columns(i)] = factors.first_order_projection.to(weights)
            coded.bias[i] = factors.first_order_bias.to(coded.bias)
        return coded

    def fold(self, model: nn.Module, new: Narrow, entry: PlanEntry, *, values: bool) -> None:
        """As declared by the model in ``folds``."""
        name = cast(str, entry.folded_into)
        model.set_submodule(name, folded_linear(_reader(model, entry.name, name), new, values=values))
        new.folded = True


def folded_linear(wide: nn.Linear, table: Narrow, *, values: bool = True) -> nn.Linear:
    """A linear layer over embeddings and numbers as one over codes and numbers (paper eq. 12).

    Args:
        wide: Reads [e, numeric], F·T + C inputs.
        table: With projections.
        values: Whether there are values to fold, or only the structure.

    Returns:
        Reads [codes, numeric], F·K + C inputs; always with a bias.
    """
    inputs = math.prod(table.code_shape) + wide.in_features - len(table.names) * table.dim
    with warnings.catch_warnings():
        # Without numbers, and with no field but of rank 0, the layer reads nothing.
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        narrow = nn.Linear(inputs, wide.out_features).to(wide.weight)
    if values:
        with torch.no_grad():
            _fold_values_(narrow, wide, table)
    return narrow.requires_grad_(wide.weight.requires_grad)


def _check_fields(module: FusedEmbedding, entry: PlanEntry, ranks: Mapping[str, int], width: int) -> None:
    """Refuse ranks of other fields, and such as are larger than the table is wide."""
    unknown = [field for field in ranks if field not in module.names]
    missing = [field for field in module.names if field not in ranks]
    if unknown or missing:
        what = f"has no field {unknown[0]!r}" if unknown else f"needs a rank for its field {missing[0]!r}"
        raise OptionError(f"ranks of {entry.name}: the table {what}; its fields: {', '.join(module.names)}")
    for field, rank in ranks.items():
        if rank > width:
            raise OptionError(
                f"rank {rank} for {entry.name}, field {field!r}: larger than the table's {width}; "
                "lower the rank"
            )


def _reader(model: nn.Module, table: str, name: str) -> nn.Linear:
    """The linear layer into which the model declares that a table may be folded."""
    declared = getattr(model, "folds", {})
    modules = dict(model.named_modules())
    linear = modules.get(name)
    if not isinstance(linear, nn.Linear) or declared.get(table) != name:
        allowed = ", ".join(f"{source} into {target}" for source, target in declared.items()) or "nothing"
        raise OptionError(
            f"{table} cannot be folded into {name}: that is right only where the layer reads the "
            f"embeddings directly, which {type(model).__name__} declares for {allowed}"
        )
    return linear


def _fold_values_(narrow: nn.Linear, wide: nn.Linear, table: Narrow) -> None:
    T = table.dim
    bias: Tensor = narrow.bias.new_zeros(wide.out_features) if wide.bias is None else wide.bias
    for i in range(len(table.names)):
        _, projection, shift = table.factors(i)
        columns, bias = fold(wide.weight[:, i * T : (i + 1) * T], bias, projection, shift)
        narrow.weight[:, table.code_columns(i)] = columns.to(narrow.weight)
    narrow.weight[:, math.prod(table.code_shape) :] = wide.weight[:, len(table.names) * T :]
    narrow.bias.copy_(bias)
