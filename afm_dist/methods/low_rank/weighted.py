"""AFM with sensitivity weighting: the errors that count are those that the logit feels.

An error δy of some outputs changes the logit by gᵀδy to first order, g = ∂logit/∂y. With G = E[ggᵀ]
the mean square of that is E[δyᵀGδy], as if g and δy were independent: AFM in the metric of G.
Shape legend: M outputs, K rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afm_dist.methods.low_rank.factorize import Projection, check_rank
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.spectrum import fix_signs

SHRINKAGE = 0.01


def weighted_projection(moments: Moments, sensitivity: Tensor, rank: int) -> Projection:
    """Find the affine map of rank K with the least weighted error, E‖G^½(y − ŷ)‖².

    With U the leading eigenvectors of G^½ΣG^½: y ≈ μ + G^−½UUᵀG^½(y − μ). What is lost is the sum of
    the other eigenvalues. Each score is scaled so that its column of ``decode`` has length 1, as in AFM:
    neither the map nor what a ReLU between the factors cuts depends on that, but fine-tuning does.

    Args:
        moments: Of the outputs: μ and Σ.
        sensitivity: E[ggᵀ], shape (M, M).
        rank: K, 1 ≤ K ≤ M.

    Returns:
        With the column's entry of largest magnitude positive.

    Raises:
        ValueError: the rank is outside 1..M, or the moments hold no rows.

    Source:
        Ours. The paper weighs all outputs alike (G = I).
    """
    check_rank(rank, moments.width)
    root, inverse = _roots(regularised(sensitivity))
    seen = root @ moments.covariance @ root
    eigenvalues, vectors = torch.linalg.eigh((seen + seen.T) / 2)
    eigenvalues, vectors = eigenvalues.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank]
    decode = inverse @ vectors
    # The longest entry of decode decides the sign, so that G = I gives AFM's factors.
    signs = (fix_signs(decode) * decode).sum(0).sign()
    lengths = decode.norm(dim=0)
    return Projection(
        mean=moments.mean,
        encode=(signs * lengths)[:, None] * (vectors.T @ root),
        decode=decode * (signs / lengths),
        deviations=eigenvalues.sqrt() * lengths,
    )


def regularised(sensitivity: Tensor) -> Tensor:
    """G that can be inverted: (1 − ρ)G + ρ·tr(G)/M·I with ρ = 0.01; I where G is zero.

    The logit may not feel some outputs at all (units behind them that never fire, a single output that
    all are added up to), and then G has no inverse. That it does not feel them is so to first order, on a
    sample, before fine-tuning: so every direction counts at least a hundredth of the mean. The condition
    of G is then at most M/ρ, that of the factors its root, which float32 can bear.

    Args:
        sensitivity: E[ggᵀ], shape (M, M).

    Raises:
        ValueError: it holds NaN or infinity.
    """
    if not torch.isfinite(sensitivity).all():
        raise ValueError("the sensitivity holds NaN or infinity")
    G = sensitivity.double()
    identity = torch.eye(len(G), dtype=torch.float64)
    mean = float(G.trace()) / len(G)
    if mean <= 0:
        return identity
    # Its scale is of no consequence to the projection, but a tiny one is to the precision.
    return (1 - SHRINKAGE) * (G + G.T) / (2 * mean) + SHRINKAGE * identity


def _roots(G: Tensor) -> tuple[Tensor, Tensor]:
    """G^½ and G^−½ of a positive definite matrix."""
    weights, vectors = torch.linalg.eigh(G)
    root = weights.clamp(min=SHRINKAGE / 2).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
