"""Taking the first-order weights into the fused table: field by field [e; w] is compressed as one.

A code of K numbers then gives the embedding e ≈ P·code + s and the first-order weight w ≈ p·code + q, and
the table of first-order weights is gone. What an error of w does to the logit is known exactly: the
gradient of the logit is 1. So E[ggᵀ] of [e; w] has E[g] in its last column and 1 in its corner.
Shape legend: F fields, V rows of a field, T embedding dimension, K code dimension.

Source:
    Ours; Yu et al. (KDD 2024) leave the first-order weights as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.factorizations import table_factors
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.first_order import LinearTerm, joint_rows
from afm_dist.tables.fused import FusedEmbedding


@dataclass(frozen=True, kw_only=True)
class JointFactors:
    """A narrow table that gives embeddings and first-order weights of one field.

    Attributes:
        codes: Shape (V, K), in the table's dtype.
        projection: P, shape (T, K), float64.
        bias: s, shape (T,), float64.
        first_order_projection: p, shape (K,), float64.
        first_order_bias: q, a scalar, float64.
    """

    codes: Tensor
    projection: Tensor
    bias: Tensor
    first_order_projection: Tensor
    first_order_bias: Tensor


def first_order_scale(sensitivity: Tensor | None) -> float:
    """Return how many units of an embedding's coordinates a first-order weight counts as; a > 0.

    Where all outputs count alike, what is small in its unit is dropped first, and the unit of w is another
    one than that of e. With a = √(E[g_w²] / mean E[g_t²]) an error of a·w moves the logit, to first order,
    as much as one of a coordinate does on average. Where E[ggᵀ] is the metric itself, a only decides what
    its regularisation adds.

    Args:
        sensitivity: E[ggᵀ] of [e; w], shape (T + 1, T + 1); None: not measured, and a = 1.
    """
    if sensitivity is None:
        return 1.0
    squares = sensitivity.diagonal()
    embedding, first_order = float(squares[:-1].mean()), float(squares[-1])
    # What the logit does not feel at all has no unit that would agree.
    return (first_order / embedding) ** 0.5 if embedding > 0 and first_order > 0 else 1.0


def in_agreeing_units(known: Statistics, keys: Iterable[str]) -> Statistics:
    """Statistics of [e; a·w] from those of [e; w], with each field's own a.

    Args:
        known: Moments and, where it was measured, the sensitivity.
        keys: Names of the fields' moments; there may be others, which stay as they are.
    """
    moments = dict(known)
    sensitivities = {key: found for key in known if (found := known.measured_sensitivity(key)) is not None}
    for key in keys:
        sensitivity = known.measured_sensitivity(key)
        scale = first_order_scale(sensitivity)
        if sensitivity is not None:
            sensitivities[key] = sensitivity / _units(len(sensitivity), scale)
        if key in known:
            moments[key] = _scaled(known[key], scale)
    return Statistics(moments, sensitivities)


def joint_factors(
    table: FusedEmbedding, term: LinearTerm, field: int, name: str, config: LowRank, known: Statistics
) -> JointFactors:
    """Factors of one field by the config's factors.

    Args:
        table: Of the embeddings.
        term: Of the first-order weights.
        field: Its number.
        name: Of the table.
        config: Factors and ranks.
        known: Moments of [e; w], and its sensitivity where it was measured.

    Raises:
        OptionError: statistics that are missing, or of the embeddings alone.
    """
    key = field_key(name, table.names[field])
    if key in known and known[key].width == table.dim:
        raise OptionError(
            f"the moments of {key} have width {table.dim}, the embedding's: to absorb {config.absorbs} those "
            "of embedding and first-order weight together are needed; take moments_from_counts(model, "
            f"manifest, {name!r}, absorbs={config.absorbs!r})"
        )
    sensitivities = known.measured_sensitivity(key)
    if sensitivities is not None and len(sensitivities) == table.dim:
        raise OptionError(
            f"the sensitivity of {key} has width {table.dim}, the embedding's: to absorb {config.absorbs} "
            f"give output_sensitivity absorbing=[{name!r}]"
        )
    scale = first_order_scale(known.measured_sensitivity(key, table.dim + 1))
    rows = joint_rows(table, term, field)
    rows[:, -1] *= scale
    factors = table_factors(
        rows, key, config, config.rank_of(table.names[field]), in_agreeing_units(known, [key])
    )
    return JointFactors(
        codes=factors.codes,
        projection=factors.projection[:-1],
        bias=factors.bias[:-1],
        first_order_projection=factors.projection[-1] / scale,
        first_order_bias=factors.bias[-1] / scale,
    )


def _units(width: int, scale: float) -> Tensor:
    """Products of the units of all pairs of coordinates, shape (T + 1, T + 1)."""
    units = torch.ones(width, dtype=torch.float64)
    units[-1] = scale
    return torch.outer(units, units)


def _scaled(moments: Moments, scale: float) -> Moments:
    products = _units(moments.width, scale)
    return replace(moments, mean=moments.mean * products[0], scatter=moments.scatter * products)
