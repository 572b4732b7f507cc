"""The metric in which errors count: E[ggᵀ] of the logit, so that all its directions count for something."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the largest eigenvalue of G: what the logit does not depend on, to first order, counts so much.
FLOOR = 1e-2
# The same where G couples codes of a row: such a fit makes use of every direction that is free, and far off
# more is lost than the first order says.
COUPLED_FLOOR = 1e-1


def floored(sensitivity: Tensor, floor: float = FLOOR) -> Tensor:
    """Raise the eigenvalues of G to a share of the largest; the identity where G is zero.

    Args:
        sensitivity: G, shape (K, K).
        floor: The share.

    Returns:
        Shape (K, K), float64.
    """
    G = sensitivity.double()
    eigenvalues, vectors = torch.linalg.eigh((G + G.T) / 2)
    largest = float(eigenvalues[-1]) if len(eigenvalues) else 0.0
    if largest <= 0:
        return torch.eye(len(G), dtype=torch.float64)
    found: Tensor = (vectors * eigenvalues.clamp(min=floor * largest)) @ vectors.T
    return found


def root_of(metric: Tensor) -> Tensor:
    """Give R with RRᵀ = G, shape (K, K), float64: (e − ê)ᵀG(e − ê) = ‖(e − ê)R‖²."""
    eigenvalues, vectors = torch.linalg.eigh(metric)
    root: Tensor = (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
    return root


@dataclass(frozen=True)
class CodebookPart:
    """Some coordinates of rows that have a codebook of their own, in the metric of all.

    What is best for them depends on the error δ of the others: their target is e + G₁₁⁻¹G₁₂δ.

    Attributes:
        columns: The coordinates, shape (k,), int64.
        target: Makes targets of e − ê, where ê is without this part, shape (K, k), float32.
        seen: Makes targets in the metric of the part, (K, k), float32: ``target`` · R₁₁.
        root: R₁₁, shape (k, k), float32.
    """

    columns: Tensor
    target: Tensor
    seen: Tensor
    root: Tensor


def part_of(metric: Tensor, columns: Tensor) -> CodebookPart:
    """Give some coordinates as a part of all.

    Args:
        metric: G, positive definite, shape (K, K), float64.
        columns: Shape (k,), int64.
    """
    own = metric[columns][:, columns]
    # G₁₁⁻¹[G₁₁ G₁₂]: the identity where the part is the whole.
    target = torch.linalg.solve(own, metric[columns]).T
    root = root_of(own)
    return CodebookPart(
        columns=columns,
        target=target.float(),
        seen=(target @ root).float(),
        root=root.float(),
    )
