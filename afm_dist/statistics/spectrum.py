"""Principal components of some outputs, and how much of their variance the leading ones keep.

Shape legend: M outputs. Everything here is a function of tensors, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from afm_dist.statistics.moments import Moments

# Share of the variance that products in float32 leave in directions without any, as measured.
NEGLIGIBLE = 1e-8


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Eigendecomposition of a covariance, Cov(y) = U diag(λ) Uᵀ.

    Attributes:
        mean: E[y], shape (M,), float64.
        eigenvalues: λ, descending, non-negative, shape (M,), float64: variances per component.
        eigenvectors: U, one column per component, shape (M, M), float64; the entry of largest
            magnitude of each column is positive.
        rank_deficiency: How many eigenvalues are zero up to round-off.
    """

    mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    rank_deficiency: int

    @property
    def width(self) -> int:
        """M, the number of dimensions."""
        return self.mean.shape[0]

    def kept_energy(self, rank: int) -> float:
        """Share of the variance (sum of eigenvalues) in the first ``rank`` components, as ``kept_share``."""
        return kept_share(self.eigenvalues, rank)

    def rank_for_energy(self, share: float) -> int:
        """Smallest rank (at least 1) whose components keep ``share`` of the variance."""
        return _components(self.eigenvalues, share)

    def rank_for_singular_values(self, share: float) -> int:
        """Choose by the sum of singular values √λ instead (the paper's Table 11)."""
        return _components(self.eigenvalues.sqrt(), share)

    @property
    def needed_rank(self) -> int:
        """Smallest rank that loses nothing the statistics could tell from round-off.

        That is ``NEGLIGIBLE`` of the variance, or what float32 cannot add to the mean; 0 where the outputs
        never change.
        """
        lost = self.eigenvalues.flip(0).cumsum(0)
        resolution = torch.finfo(torch.float32).eps ** 2 * float(self.mean.square().sum())
        nothing = max(NEGLIGIBLE * float(self.eigenvalues.sum()), resolution)
        return self.width - int((lost <= nothing).sum())


def kept_share(values: Tensor, rank: int) -> float:
    """Compute the share of some variances that the first ``rank`` of them make up.

    In [0, 1], never smaller for a higher rank, and exactly 1 where all that is left out is zero, as at full
    rank; 1 where there is no variance.

    Args:
        values: Not negative, shape (M,).
        rank: K, 0 ≤ K ≤ M.

    Raises:
        ValueError: the rank is outside 0..M.
    """
    if not 0 <= rank <= len(values):
        raise ValueError(f"rank {rank} is outside 0..{len(values)}")
    # Each sum is rounded once: in floats the sum of some may exceed that of all, in another order.
    numbers = values.tolist()
    total = math.fsum(numbers)
    return math.fsum(numbers[:rank]) / total if total > 0 else 1.0


def _components(values: Tensor, share: float) -> int:
    if not 0 < share <= 1:
        raise ValueError(f"share {share} is not in (0, 1]")
    cumulative = values.cumsum(0)
    total = float(cumulative[-1])
    if total <= 0:
        return 1
    # A share of exactly 1 must not depend on the last bits of the cumulative sum.
    threshold = share * total * (1 - 1e-12)
    return min(int((cumulative < threshold).sum()) + 1, len(values))


def eigendecompose(moments: Moments) -> Spectrum:
    """Principal components of some outputs (paper, section 3.2).

    Raises:
        ValueError: the moments hold no rows.

    Notes:
        O(M³), once per layer, on the driver.
    """
    covariance = moments.covariance
    eigenvalues, eigenvectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    eigenvalues = eigenvalues.flip(0).clamp(min=0)
    eigenvectors = eigenvectors.flip(1)
    tolerance = moments.width * torch.finfo(torch.float64).eps * float(eigenvalues[0])
    return Spectrum(
        mean=moments.mean,
        eigenvalues=eigenvalues,
        eigenvectors=fix_signs(eigenvectors),
        rank_deficiency=int((eigenvalues <= tolerance).sum()),
    )


def fix_signs(vectors: Tensor) -> Tensor:
    """Columns whose entry of largest magnitude is positive."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)
