"""What layers and tables of low rank have in common: what their ranks cost and lose, and how rows stream."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from afm_dist import storage
from afm_dist.compression.allocate import Choice
from afm_dist.compression.method import Candidates, Method
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.absorb import in_agreeing_units
from afm_dist.methods.low_rank.config import FACTORS, LowRank
from afm_dist.methods.low_rank.factorizations import FACTORIZATIONS, ProjectedOutputs
from afm_dist.methods.low_rank.factorize import Projection, codes_of
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.outputs import outputs_of
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.table import Table

M = TypeVar("M", bound=nn.Module)


class LowRankMethod(Method[LowRank, M], ABC, Generic[M]):
    """Modules of low rank, of any type: a rank is a candidate for a budget."""

    def examples(self, module: M) -> list[LowRank]:
        """Give half the width by each kind of factors; of a fused table also ranks by field."""
        width = width_of(module)
        found = [LowRank(factors=factors, rank=max(1, width // 2)) for factors in FACTORS]
        if isinstance(module, Table):
            ranks = {field: i % (width + 1) for i, field in enumerate(module.names)}
            found.append(LowRank(rank=1).with_rank(ranks))
        return found

    def lossless(self, module: M) -> LowRank:
        """Give full rank."""
        return LowRank(rank=width_of(module))

    def needs_sensitivity(self, config: LowRank) -> bool:
        """Tell whether the factors do."""
        return FACTORIZATIONS[config.factors].needs_sensitivity()

    def candidates(
        self,
        name: str,
        module: M,
        config: LowRank,
        known: Statistics,
        cost: Callable[[LowRank], int],
        *,
        by_field: bool,
    ) -> Candidates:
        """List all ranks that make the module smaller; of a fused table also those of each field.

        Args:
            name: Of the module.
            module: The uncompressed one.
            config: All but the rank.
            known: Of the outputs, with the sensitivity.
            cost: Gives the bytes that the whole model has more, or fewer, than now.
            by_field: Whether the fields of a table are chosen one by one, too.

        Raises:
            OptionError: statistics are missing, or the factors do not project outputs.
        """
        errors = rank_errors(name, config, known)
        totals = [sum(own) for own in zip(*(found.tolist() for found in errors.values()), strict=True)]
        first = cost(config.with_rank(1))
        # A rank more is always as many bytes more.
        slope = cost(config.with_rank(2)) - first if len(totals) > 2 else 0
        costs = {rank: first + (rank - 1) * slope for rank in range(1, len(totals))}
        whole = [Choice(config.with_rank(rank), own, totals[rank]) for rank, own in costs.items() if own < 0]
        if not by_field or not isinstance(module, Table):
            return Candidates(whole=whole)
        base, by_rank = _field_costs(module, config, cost)
        return Candidates(
            whole=whole,
            fields={
                field: [
                    Choice(rank, rank * by_rank[field], error)
                    for rank, error in enumerate(errors[field_key(name, field)].tolist())
                ]
                for field in module.names
            },
            base=base,
            combine=config.with_rank,
        )

    def connect(
        self,
        model: nn.Module,
        new: Any,
        name: str,
        module: M,
        config: LowRank,
        known: Statistics | None,
    ) -> bool:
        """Refuse neighbours: only fused tables have some."""
        del model, new, module, known
        refuse_neighbours(name, config)
        return False

    def smallest(self, module: M, config: LowRank, *, by_field: bool) -> list[LowRank]:
        """Give rank 1, and of a fused table also rank 0 for all fields."""
        found = [config.with_rank(1)]
        if by_field and isinstance(module, Table):
            found.append(config.with_rank(dict.fromkeys(module.names, 0)))
        return found

    def longest(self, module: M, config: LowRank, *, by_field: bool) -> LowRank:
        """Give full rank; of a fused table as many different ranks of fields as there can be."""
        width = width_of(module) + (config.absorbs is not None)
        if not by_field or not isinstance(module, Table):
            return config.with_rank(width)
        return config.with_rank({field: width - i % (width + 1) for i, field in enumerate(module.names)})

    def row_encoder(
        self, name: str, field: str, config: LowRank, width: int, known: Statistics
    ) -> ProjectedRows:
        """Give the projection of a field's rows.

        Raises:
            OptionError: the factors follow from the whole table, or more than a projection is asked for.
        """
        factors = FACTORIZATIONS[config.factors]
        if not isinstance(factors, ProjectedOutputs):
            raise OptionError(
                f"factors {config.factors!r} of {name}: they follow from the table itself, not from "
                "moments; take afm or weighted, or use compress_"
            )
        if config.ranks is not None:
            raise OptionError(
                f"{name} cannot have ranks by field without being in memory; give all fields one, or use "
                "compress_"
            )
        if config.absorbs is not None:
            raise OptionError(
                f"{name} cannot absorb {config.absorbs} without being in memory; leave absorbs out, or use "
                "compress_"
            )
        return ProjectedRows(factors.projection(field_key(name, field), width, config.rank, known).encode)


class ProjectedRows:
    """Makes codes of rows, in float64 and back in the rows' dtype.

    Args:
        encode: B of a projection, shape (K, T), float64.
    """

    def __init__(self, encode: Tensor) -> None:
        self._components = encode.T

    @property
    def width(self) -> int:
        """K."""
        return self._components.shape[1]

    @property
    def digest(self) -> str:
        """SHA-256 of the projection."""
        return storage.sha256(self._components.T.contiguous().numpy().tobytes())

    def __call__(self, rows: Tensor) -> Tensor:
        """Project rows (n, T) to codes (n, K)."""
        return codes_of(rows, self._components)


def width_of(module: nn.Module) -> int:
    """Give the width of a module's outputs, which is the largest rank."""
    return next(iter(outputs_of(module).widths("", module).values()))


def rank_errors(name: str, config: LowRank, known: Statistics) -> dict[str, Tensor]:
    """Predict what each rank of a module does to the logit.

    Args:
        name: Of the module.
        config: Its factors.
        known: Of the outputs, with the sensitivity.

    Returns:
        By the names of the module's statistics, the errors of ranks 0 to M, shape (M + 1,), float64.

    Raises:
        OptionError: statistics are missing, or the factors do not project outputs.
    """
    keys = known.keys_of(name)
    if not keys:
        raise OptionError(f"no moments of {name}; collect them before its rank is chosen")
    if config.absorbs is not None:
        known = in_agreeing_units(known, keys)
    factors = FACTORIZATIONS[config.factors]
    if not isinstance(factors, ProjectedOutputs):
        raise OptionError(
            f"factors {config.factors!r} of {name}: what their ranks do to the logit is not predicted; take "
            "'afm' or 'weighted'"
        )
    errors = {}
    for key in keys:
        width = known[key].width
        whole = factors.projection(key, width, width, known)
        errors[key] = tail_errors(whole, known.sensitivity(key, width))
    return errors


def tail_errors(projection: Projection, sensitivity: Tensor) -> Tensor:
    """Predict the error of keeping 0, 1, …, M components, shape (M + 1,), float64.

    The mean square of the change of the logit, to first order and as if g and the output were
    independent: Σ σ_j²·d_jᵀE[ggᵀ]d_j over the components that are dropped, with σ_j the deviation of
    score j and d_j what it adds to the outputs.

    Args:
        projection: Of rank M, with scores that are not correlated.
        sensitivity: E[ggᵀ], shape (M, M).
    """
    weights = (projection.decode * (sensitivity @ projection.decode)).sum(0).clamp(min=0)
    dropped = (projection.deviations.square() * weights).flip(0).cumsum(0).flip(0)
    return torch.cat([dropped, dropped.new_zeros(1)])


def check_width(name: str, config: LowRank, width: int) -> None:
    """Refuse a rank larger than a module, and ranks by field of a module that has none.

    Raises:
        OptionError: names module, rank and width.
    """
    if config.ranks is not None:
        raise OptionError(
            f"{name} has no fields that could have ranks of their own; only the fused tables of this "
            "library's models have; leave ranks out"
        )
    if config.rank > width:
        raise OptionError(f"rank {config.rank} for {name}: larger than the layer's {width}; lower the rank")


def refuse_neighbours(name: str, config: LowRank) -> None:
    """Refuse a config that names neighbours, of a module that has none.

    Raises:
        OptionError: names the module and the neighbour.
    """
    if config.folded_into is not None:
        raise OptionError(
            f"{name} cannot be folded into {config.folded_into}: only the fused tables of this "
            "library's models are folded; leave folded_into out"
        )
    if config.absorbs is not None:
        raise OptionError(
            f"{name} cannot absorb {config.absorbs}: only the fused tables of this library's models "
            "take in first-order weights; leave absorbs out"
        )


def _field_costs(table: Table, config: LowRank, cost: Callable[[LowRank], int]) -> tuple[int, dict[str, int]]:
    """Give the bytes more, or fewer, with all fields at rank 0, and what a rank more of each field costs."""
    rows: Mapping[str, int] = dict(zip(table.names, table.cardinalities, strict=True))
    means = dict.fromkeys(rows, 0)
    least = cost(config.with_rank(means))
    few, many = min(rows, key=rows.__getitem__), max(rows, key=rows.__getitem__)
    one, other = (cost(config.with_rank({**means, field: 1})) - least for field in (few, many))
    # A rank more is always as many numbers more: a code a row, and as much of all that reads codes.
    by_row = (other - one) // max(1, rows[many] - rows[few])
    return least, {field: one + by_row * (own - rows[few]) for field, own in rows.items()}
