"""Mergeable first and second moments: count, mean and centred scatter, in float64.

Shape legend: M outputs of a layer, V rows of a table, T embedding dimension.

The scatter is the *centred* sum of outer products, so the covariance never comes from the
subtraction E[yyᵀ] − E[y]E[y]ᵀ, which loses all digits when the mean is large against the
deviation. Two halves are merged by the pairwise formula of Chan, Golub and LeVeque (1979).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of a table per float64 block: one that stays in a processor's cache, whatever the table.
TABLE_ROWS = 1 << 13
# The blocks of so many rows are summed first, and then those sums: so a table gives the same bits as a
# whole and from tasks that take a range each.
RANGE_ROWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and scatter of some M-dimensional rows.

    Rows may be weighted sums y = Σ wᵢeᵢ, as those of ``nn.EmbeddingBag``; with W = Σ wᵢ their mean is
    that of the summands that explains the sums best, and their scatter is what it leaves unexplained.

    Attributes:
        count: Number of rows.
        mean: E[y], shape (M,), float64; of sums μ = Σ W·y / Σ W².
        scatter: Σ (y − E[y])(y − E[y])ᵀ, shape (M, M), float64; of sums Σ (y − Wμ)(y − Wμ)ᵀ.
        weight: Of sums Σ W²; None for plain rows, whose W are all 1.
    """

    count: int
    mean: Tensor
    scatter: Tensor
    weight: float | None = None

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Make the identity of ``merge``: no rows."""
        return cls(
            count=0,
            mean=torch.zeros(width, dtype=torch.float64),
            scatter=torch.zeros(width, width, dtype=torch.float64),
        )

    @property
    def width(self) -> int:
        """M, the number of dimensions."""
        return self.mean.shape[0]

    @property
    def covariance(self) -> Tensor:
        """Cov(y) of the paper's eq. 1 (divided by the count), shape (M, M), float64.

        Raises:
            ValueError: there are no rows.
        """
        if self.count == 0:
            raise ValueError("the covariance of no rows is not defined")
        return self.scatter / self.count

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together.

        Raises:
            ValueError: the widths differ.
        """
        if self.width != other.width:
            raise ValueError(f"cannot merge moments of widths {self.width} and {other.width}")
        if self.count == 0:
            return other
        if other.count == 0:
            return self
        a, b = (item.count if item.weight is None else item.weight for item in (self, other))
        share = b / (a + b) if a + b > 0 else 0.0
        delta = other.mean - self.mean
        return Moments(
            count=self.count + other.count,
            mean=self.mean + delta * share,
            scatter=self.scatter + other.scatter + torch.outer(delta, delta * (a * share)),
            weight=None if self.weight is None and other.weight is None else float(a + b),
        )

    def digest(self) -> str:
        """SHA-256 of the exact bits: equal digests mean equal statistics."""
        weight = "" if self.weight is None else f" {self.weight.hex()}"
        digest = hashlib.sha256(f"{self.count}{weight}".encode())
        for tensor in (self.mean, self.scatter):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def moments_of_table(table: Tensor, counts: Tensor) -> Moments:
    """Moments of an embedding field from how often each id occurs (paper eq. 7, exactly).

    E[e] = Σ_v n_v e_v / N and E[eeᵀ] = Σ_v n_v e_v e_vᵀ / N, centred block by block.

    Args:
        table: Embedding rows, shape (V, T).
        counts: Occurrences of each id in the training split, shape (V,), integers.

    Returns:
        Moments of the Σ_v n_v looked-up rows.

    Raises:
        ValueError: shapes differ, a count is negative, or the table holds NaN or infinity.

    Notes:
        O(V·T²) operations, independent of the rows of the log; needs no inference.
    """
    if counts.shape != table.shape[:1]:
        raise ValueError(f"{tuple(counts.shape)} counts for a table of {table.shape[0]} rows")
    merged = Moments.empty(table.shape[1])
    with one_thread():
        for rows, weights in zip(table.split(RANGE_ROWS), counts.split(RANGE_ROWS), strict=True):
            blocks = zip(rows.split(TABLE_ROWS), weights.split(TABLE_ROWS), strict=True)
            merged = merged.merge(moments_of_blocks(blocks, table.shape[1]))
    return merged


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a task: with several threads BLAS adds up in another order, and so gives other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def moments_of_blocks(blocks: Iterable[tuple[Tensor, Tensor]], width: int) -> Moments:
    """Compute the same from blocks of rows, one in memory at a time: at most ``RANGE_ROWS`` rows in all.

    Args:
        blocks: Embedding rows (V, T) and their counts (V,), ``TABLE_ROWS`` at a time.
        width: T.

    Raises:
        ValueError: a count is negative, or the table holds NaN or infinity.
    """
    merged = Moments.empty(width)
    for rows, counts in blocks:
        merged = merged.merge(_moments_of_block(rows, counts))
    return merged


def _moments_of_block(rows: Tensor, counts: Tensor) -> Moments:
    least = int(counts.min()) if len(counts) else 0
    if least < 0:
        raise ValueError("negative counts")
    if least == 0:
        # Rows that never occur may hold anything.
        occurring = counts > 0
        rows, counts = rows[occurring], counts[occurring]
    count = int(counts.sum())
    if count == 0:
        return Moments.empty(rows.shape[1])
    values, weights = rows.to(torch.float64, copy=True), counts.double()
    mean = (weights @ values) / count
    if not torch.isfinite(mean).all():
        raise ValueError("NaN or infinity")
    # In place: the block is read from memory once, and then from the cache.
    values.sub_(mean).mul_(weights.sqrt_()[:, None])
    return Moments(count=count, mean=mean, scatter=values.T @ values)


def moments_of_sums(sums: Tensor, weights: Tensor) -> Moments:
    """Moments of weighted sums y = Σ wᵢeᵢ, centred on W·μ, where W = Σ wᵢ and μ = Σ W·y / Σ W².

    An approximation of the summands, ê = Qe + s, makes the error (y − ŷ) = (I − Q)y − W·s of a sum.
    Its mean square is least for s = (I − Q)μ and Q the projection on the leading eigenvectors of this
    scatter: for any Q, s is a regression through the origin, and what remains is (I − Q)(y − Wμ).
    With all W = 1 these are plain moments.

    Args:
        sums: y, shape (B, M).
        weights: W, shape (B,).

    Raises:
        ValueError: NaN or infinity.
    """
    y, W = sums.double(), weights.double()
    if not (torch.isfinite(y).all() and torch.isfinite(W).all()):
        raise ValueError("NaN or infinity")
    weight = float(W.square().sum())
    mean = (W / weight) @ y if weight > 0 else y.new_zeros(y.shape[1])
    residual = y - torch.outer(W, mean)
    return Moments(count=len(y), mean=mean.cpu(), scatter=(residual.T @ residual).cpu(), weight=weight)
