"""Statistics of the codes of a module of low rank, from those of the module: methods stack on them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from afm_dist.statistics.moments import Moments
from afm_dist.statistics.statistics import Statistics


def carry(
    known: Statistics, key: str, to: str, encode: Tensor, decode: Tensor
) -> tuple[dict[str, Moments], dict[str, Tensor]]:
    """Give the statistics of codes c = B·e of which e ≈ A·c + s: moments of c, and AᵀGA.

    Args:
        known: Of e.
        key: Of e.
        to: Name of the statistics of c.
        encode: B, shape (K, M), float64.
        decode: A, shape (M, K).

    Returns:
        Moments and, where it was measured, the sensitivity, by ``to``; nothing where nothing is known of e.
    """
    if key not in known:
        return {}, {}
    own, A = known[key], decode.detach().double().cpu()
    moments = replace(own, mean=encode @ own.mean, scatter=encode @ own.scatter @ encode.T)
    sensitivity = known.measured_sensitivity(key, own.width)
    return {to: moments}, {} if sensitivity is None else {to: A.T @ sensitivity @ A}
