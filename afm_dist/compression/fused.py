"""How the fused table of this library's models is compressed, and folded into the layer behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from afm_dist.compression.absorb import first_order_of, joint_factors
from afm_dist.compression.factorize import fold
from afm_dist.compression.handler import ALREADY_COMPRESSED, Handler, Observation, check_width
from afm_dist.compression.methods import FACTORIZATIONS
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import PlanEntry
from afm_dist.compression.ranks import field_key
from afm_dist.embedding import FusedEmbedding
from afm_dist.errors import OptionError
from afm_dist.first_order import CodedLinearTerm


class FusedHandler(Handler[FusedEmbedding]):
    """Each field has moments, a projection and a bias of its own; the rank is common."""

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

    def build(self, module: FusedEmbedding, entry: PlanEntry) -> FusedEmbedding:
        """A narrow fused table with projections."""
        check_width(entry, module.dim + (entry.absorbs is not None))
        return FusedEmbedding(
            module.names, module.cardinalities, module.dim, code_dim=entry.rank, sparse=module.sparse
        )

    def fill(
        self,
        new: FusedEmbedding,
        module: FusedEmbedding,
        entry: PlanEntry,
        known: OutputStatistics,
    ) -> None:
        """Factors by the entry's method, field by field."""
        projection, shift = _projection(new)
        method = FACTORIZATIONS[entry.method]
        for i, field in enumerate(module.names):
            rows = module.rows(i)
            table = module.weight.detach()[rows].cpu()
            factors = method.table(table, field_key(entry.name, field), entry, known)
            new.weight[rows] = factors.codes.to(new.weight)
            projection[i] = factors.projection.to(projection)
            shift[i] = factors.bias.to(shift)

    def absorb(
        self,
        model: nn.Module,
        new: FusedEmbedding,
        module: FusedEmbedding,
        entry: PlanEntry,
        known: OutputStatistics | None,
    ) -> CodedLinearTerm:
        """As declared by the model in ``absorbs``."""
        name = cast(str, entry.absorbs)
        term = first_order_of(model, entry.name, name)
        coded = CodedLinearTerm(len(new.names), new.code_dim, term.numeric).train(term.training)
        for parameter in (coded.projection, coded.bias):
            parameter.requires_grad_(term.weight.requires_grad)
        if known is None:
            return coded
        projection, shift = _projection(new)
        for i, field in enumerate(module.names):
            factors = joint_factors(module, term, i, field_key(entry.name, field), entry, known)
            new.weight[module.rows(i)] = factors.codes.to(new.weight)
            projection[i] = factors.projection.to(projection)
            shift[i] = factors.bias.to(shift)
            coded.projection[i] = factors.first_order_projection.to(coded.projection)
            coded.bias[i] = factors.first_order_bias.to(coded.bias)
        return coded

    def fold(self, model: nn.Module, new: FusedEmbedding, entry: PlanEntry, *, values: bool) -> None:
        """As declared by the model in ``folds``."""
        name = cast(str, entry.folded_into)
        wide = _reader(model, entry.name, name)
        read = len(new.names) * new.dim
        narrow = nn.Linear(len(new.names) * new.code_dim + wide.in_features - read, wide.out_features).to(
            wide.weight
        )
        if values:
            _fold_values_(narrow, wide, new)
        narrow.requires_grad_(wide.weight.requires_grad)
        new.folded = True
        model.set_submodule(name, narrow)


def _projection(table: FusedEmbedding) -> tuple[Tensor, Tensor]:
    assert table.projection is not None
    assert table.bias is not None
    return table.projection, table.bias


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


def _fold_values_(narrow: nn.Linear, wide: nn.Linear, table: FusedEmbedding) -> None:
    projection, shift = _projection(table)
    T, K = table.dim, table.code_dim
    bias: Tensor = narrow.bias.new_zeros(wide.out_features) if wide.bias is None else wide.bias
    for i in range(len(table.names)):
        columns, bias = fold(wide.weight[:, i * T : (i + 1) * T], bias, projection[i], shift[i])
        narrow.weight[:, i * K : (i + 1) * K] = columns.to(narrow.weight)
    narrow.weight[:, len(table.names) * K :] = wide.weight[:, len(table.names) * T :]
    narrow.bias.copy_(bias)
