"""How the fused table of this library's models is compressed, and folded into the layer behind it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from afm_dist.compression.method import ALREADY_COMPRESSED
from afm_dist.compression.registry import irreplaceable
from afm_dist.compression.replacing import replace_module
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.absorb import in_agreeing_units, joint_factors
from afm_dist.methods.low_rank.carrying import carry
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.factorizations import FACTORIZATIONS, ProjectedOutputs, table_factors
from afm_dist.methods.low_rank.factorize import TableFactors
from afm_dist.methods.low_rank.method import LowRankMethod, check_width
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.first_order import CodedLinearTerm, first_order_of
from afm_dist.tables.folding import folded_linear
from afm_dist.tables.fused import FusedEmbedding
from afm_dist.tables.grouped import GroupedEmbedding

Narrow = FusedEmbedding | GroupedEmbedding


class LowRankOfFused(LowRankMethod[FusedEmbedding]):
    """Each field has moments, a projection and a bias of its own; the rank is common or its own, too."""

    makes = (GroupedEmbedding,)

    def refusal(self, module: FusedEmbedding) -> str | None:
        """Refuse a table that is compressed."""
        return ALREADY_COMPRESSED if module.compressed else None

    def build(self, name: str, module: FusedEmbedding, config: LowRank) -> Narrow:
        """Make a narrow fused table with projections, or one for each rank."""
        width = module.dim + (config.absorbs is not None)
        if config.ranks is not None:
            _check_fields(name, module, config.ranks, width)
            ranks = [config.ranks[field] for field in module.names]
            return GroupedEmbedding(
                module.names, module.cardinalities, module.dim, ranks, sparse=module.sparse
            )
        check_width(name, config, width)
        return FusedEmbedding(
            module.names, module.cardinalities, module.dim, code_dim=config.rank, sparse=module.sparse
        )

    def fill(
        self, new: Narrow, name: str, module: FusedEmbedding, config: LowRank, known: Statistics
    ) -> None:
        """Write the factors, field by field."""
        for i, field in enumerate(module.names):
            table = module.weight.detach()[module.rows(i)].cpu()
            factors = table_factors(table, field_key(name, field), config, config.rank_of(field), known)
            part = new.factors(i)
            part.codes.copy_(factors.codes)
            part.projection.copy_(factors.projection)
            part.bias.copy_(factors.bias)

    def carried(
        self, name: str, new: Narrow, module: FusedEmbedding, config: LowRank, known: Statistics
    ) -> Statistics:
        """Carry the statistics of each field to its codes.

        They have the names of the field in the table; of fields with ranks of their own, in the part of the
        table with that rank. Where first-order weights were absorbed by a factorisation of the weights
        nothing is known of the codes.
        """
        method = FACTORIZATIONS[config.factors]
        moments: dict[str, Moments] = {}
        sensitivity: dict[str, Tensor] = {}
        names: dict[str, str] = {}
        for i, field in enumerate(module.names):
            key, rank = field_key(name, field), config.rank_of(field)
            part = f"{name}.{new.part_name(i)}".removesuffix(".")
            names[key] = field_key(part, field)
            if not rank:
                continue
            if isinstance(method, ProjectedOutputs) and config.absorbs is not None:
                units = in_agreeing_units(known, [key])
                whole = method.projection(key, module.dim + 1, rank, units)
                own, gradients = carry(units, key, names[key], whole.encode, whole.decode)
            elif config.absorbs is None:
                of_field = new.factors(i)
                factors = TableFactors(
                    codes=of_field.codes, projection=of_field.projection, bias=of_field.bias
                )
                encode = method.encoder(key, rank, factors, known)
                own, gradients = carry(known, key, names[key], encode.double().cpu(), of_field.projection)
            else:
                continue
            moments, sensitivity = moments | own, sensitivity | gradients
        return known.replacing(name, moments, sensitivity, names)

    def connect(
        self,
        model: nn.Module,
        new: Narrow,
        name: str,
        module: FusedEmbedding,
        config: LowRank,
        known: Statistics | None,
    ) -> bool:
        """Absorb the first-order term, and fold the projection into its reader, as the model declares."""
        if config.absorbs is not None:
            term = _absorb(model, new, name, module, config, known)
            reason = irreplaceable(model, config.absorbs)
            if reason is not None:
                raise OptionError(f"{config.absorbs} {reason}")
            replace_module(model, model.get_submodule(config.absorbs), term)
        elif known is not None:
            self.fill(new, name, module, config, known)
        if config.folded_into is not None:
            if config.folded_into in dict(model.named_modules()):
                reason = irreplaceable(model, config.folded_into)
                if reason is not None:
                    raise OptionError(f"{config.folded_into} {reason}")
            reader = _reader(model, name, config.folded_into)
            model.set_submodule(config.folded_into, folded_linear(reader, new, values=known is not None))
            new.folded = True
        return True


def _absorb(
    model: nn.Module,
    new: Narrow,
    name: str,
    module: FusedEmbedding,
    config: LowRank,
    known: Statistics | None,
) -> CodedLinearTerm:
    """Write the values of a table together with those of the first-order term whose place it takes."""
    assert config.absorbs is not None
    term = first_order_of(model, name, config.absorbs)
    columns = [new.code_columns(i) for i in range(len(new.names))]
    widths = [own.stop - own.start for own in columns]
    coded = CodedLinearTerm(widths, new.code_shape, term.numeric).train(term.training)
    for parameter in (coded.projection, coded.bias):
        parameter.requires_grad_(term.weight.requires_grad)
    if known is None:
        return coded
    weights = coded.projection.view(-1)
    for i in range(len(module.names)):
        factors = joint_factors(module, term, i, name, config, known)
        part = new.factors(i)
        part.codes.copy_(factors.codes)
        part.projection.copy_(factors.projection)
        part.bias.copy_(factors.bias)
        weights[columns[i]] = factors.first_order_projection.to(weights)
        coded.bias[i] = factors.first_order_bias.to(coded.bias)
    return coded


def _check_fields(name: str, module: FusedEmbedding, ranks: Mapping[str, int], width: int) -> None:
    """Refuse ranks of other fields, and such as are larger than the table is wide."""
    unknown = [field for field in ranks if field not in module.names]
    missing = [field for field in module.names if field not in ranks]
    if unknown or missing:
        what = f"has no field {unknown[0]!r}" if unknown else f"needs a rank for its field {missing[0]!r}"
        raise OptionError(f"ranks of {name}: the table {what}; its fields: {', '.join(module.names)}")
    for field, rank in ranks.items():
        if rank > width:
            raise OptionError(
                f"rank {rank} for {name}, field {field!r}: larger than the table's {width}; lower the rank"
            )


def _reader(model: nn.Module, table: str, name: str) -> nn.Linear:
    """Find the linear layer into which the model declares that a table may be folded."""
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
