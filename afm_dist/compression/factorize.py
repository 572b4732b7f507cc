"""Pure mathematics of the compression: spectra and low-rank factors.

Shape legend: M layer outputs, N layer inputs, K rank, V rows of a table, T embedding dimension.
Everything here is a function of tensors, in float64: no files, no Ray, no modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from afm_dist.compression.plan import DEFAULT_KAPPA, Activation
from afm_dist.statistics.moments import TABLE_ROWS, Moments

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
        """The same by the sum of singular values √λ (the paper's Table 11)."""
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
    """The share of some variances that the first ``rank`` of them make up.

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


@dataclass(frozen=True, kw_only=True)
class Projection:
    """An affine map of rank K of some outputs: y ≈ mean + decode·encode·(y − mean).

    Attributes:
        mean: E[y], shape (M,), float64.
        encode: Makes the scores, shape (K, M), float64; encode·decode = I.
        decode: Makes outputs of scores, shape (M, K), float64.
        deviations: Standard deviations of the scores encode·y, shape (K,), float64.
    """

    mean: Tensor
    encode: Tensor
    decode: Tensor
    deviations: Tensor


def principal(spectrum: Spectrum, rank: int) -> Projection:
    """The map with the least mean squared error, E‖y − ŷ‖²: on the leading eigenvectors.

    Raises:
        ValueError: the rank is outside 1..M.
    """
    check_rank(rank, spectrum.width)
    components = spectrum.eigenvectors[:, :rank]
    return Projection(
        mean=spectrum.mean,
        encode=components.T,
        decode=components,
        deviations=spectrum.eigenvalues[:rank].sqrt(),
    )


@dataclass(frozen=True, kw_only=True)
class LinearFactors:
    """Two linear layers in place of one: y ≈ second_weight·f(first_weight·x + first_bias) + second_bias.

    Attributes:
        first_weight: Shape (K, N).
        first_bias: Shape (K,); None where the first layer has no bias.
        second_weight: Shape (M, K).
        second_bias: Shape (M,).
    """

    first_weight: Tensor
    first_bias: Tensor | None
    second_weight: Tensor
    second_bias: Tensor


def projected_linear(
    weight: Tensor,
    bias: Tensor | None,
    projection: Projection,
    activation: Activation,
    kappa: float = DEFAULT_KAPPA,
) -> LinearFactors:
    """One linear layer with its outputs projected (paper eq. 5), with room for a ReLU between.

    With A = decode and B = encode, ``none`` and ``plain`` are eq. 5: first BW, second A with bias
    E[y] + AB(b − E[y]); ``plain`` puts a ReLU between, as published. ``shifted`` moves the scores
    into the linear part of the ReLU: z = B(Wx + b) + c before it and −Ac after it, where
    c_i = max(0, κσ_i − m_i) for a score of mean m_i and deviation σ_i.

    Args:
        weight: W, shape (M, N).
        bias: b, shape (M,), or None.
        projection: Of the layer's outputs.
        activation: What stands between the factors.
        kappa: κ, in standard deviations of a score.
    """
    encode, decode = projection.encode, projection.decode
    W, b, mean = _double(weight, bias, projection.mean)
    scores = encode @ mean
    if activation == "shifted":
        shift = (kappa * projection.deviations - scores).clamp(min=0)
        return LinearFactors(
            first_weight=encode @ W,
            first_bias=encode @ b + shift,
            second_weight=decode,
            second_bias=mean - decode @ (scores + shift),
        )
    return LinearFactors(
        first_weight=encode @ W,
        first_bias=None,
        second_weight=decode,
        second_bias=mean + decode @ (encode @ (b - mean)),
    )


def afm_linear(
    weight: Tensor,
    bias: Tensor | None,
    spectrum: Spectrum,
    rank: int,
    activation: Activation,
    kappa: float = DEFAULT_KAPPA,
) -> LinearFactors:
    """Atomic feature mimicking of one linear layer (paper eq. 5): its outputs' principal components.

    Args:
        weight: W, shape (M, N).
        bias: b, shape (M,), or None.
        spectrum: Of the layer's outputs.
        rank: K, 1 ≤ K ≤ M.
        activation: What stands between the factors.
        kappa: κ, in standard deviations of a score.

    Raises:
        ValueError: the rank is outside 1..M.
    """
    return projected_linear(weight, bias, principal(spectrum, rank), activation, kappa)


def svd_linear(
    weight: Tensor,
    bias: Tensor | None,
    spectrum: Spectrum,
    rank: int,
    activation: Activation,
    kappa: float = DEFAULT_KAPPA,
) -> LinearFactors:
    """The control: truncated SVD of the weight, W ≈ (U_k S_k^½)(S_k^½ V_kᵀ) (paper, section 3.1).

    Uses the outputs' moments only for the shift of the ``shifted`` ReLU: the scores are
    z = S_k^−½ U_kᵀ(y − b), so their mean and variance follow from those of y.

    Args and Raises: as in ``afm_linear``.
    """
    check_rank(rank, spectrum.width)
    W, b, mean = _double(weight, bias, spectrum.mean)
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    rank = min(rank, len(S))
    root = S[:rank].sqrt()
    first, second = root[:, None] * Vt[:rank], U[:, :rank] * root
    if activation != "shifted":
        return LinearFactors(first_weight=first, first_bias=None, second_weight=second, second_bias=b)
    inverse = torch.where(root > root.max() * 1e-7, 1 / root.clamp(min=1e-300), 0.0)
    to_scores = inverse[:, None] * U[:, :rank].T
    rotated = to_scores @ spectrum.eigenvectors
    deviation = (rotated.square() @ spectrum.eigenvalues).sqrt()
    shift = (kappa * deviation - to_scores @ (mean - b)).clamp(min=0)
    return LinearFactors(
        first_weight=first, first_bias=shift, second_weight=second, second_bias=b - second @ shift
    )


@dataclass(frozen=True, kw_only=True)
class TableFactors:
    """A narrow table and a projection in place of a wide table: e ≈ projection·code + bias.

    Attributes:
        codes: Shape (V, K), in the table's dtype.
        projection: Shape (T, K), float64.
        bias: Shape (T,), float64.
    """

    codes: Tensor
    projection: Tensor
    bias: Tensor


def projected_table(table: Tensor, projection: Projection) -> TableFactors:
    """One embedding table with its rows projected (paper eq. 10): codes DBᵀ, projection A, bias (I − AB)E[e].

    Args:
        table: D, one row per id, shape (V, T).
        projection: A = decode and B = encode, of the looked-up rows.
    """
    encode, decode, mean = projection.encode, projection.decode, projection.mean
    return TableFactors(
        codes=codes_of(table, encode.T),
        projection=decode,
        bias=mean - decode @ (encode @ mean),
    )


def svd_table(table: Tensor, rank: int) -> TableFactors:
    """The control: truncated SVD of the table itself, every row counting once (section 3.1).

    Rows that hold NaN or infinity count for nothing, as those that never occur may; their codes are not
    finite, as those of ``projected_table`` are not.

    Args:
        table: D, one row per id, shape (V, T).
        rank: K, 1 ≤ K ≤ T.

    Raises:
        ValueError: the rank is outside 1..T.
    """
    width = table.shape[1]
    check_rank(rank, width)
    gram = torch.zeros(width, width, dtype=torch.float64)
    for rows in _finite_rows(table):
        gram += rows.T @ rows
    _, vectors = torch.linalg.eigh(gram)
    components = fix_signs(vectors.flip(1))[:, :rank]
    return TableFactors(
        codes=codes_of(table, components),
        projection=components,
        bias=torch.zeros(width, dtype=torch.float64),
    )


def mean_row(table: Tensor) -> Tensor:
    """The mean of a table's rows, each counting once, but for those that hold NaN or infinity.

    Args:
        table: D, one row per id, shape (V, T).

    Returns:
        Shape (T,), float64; zeros where no row counts.
    """
    total, count = torch.zeros(table.shape[1], dtype=torch.float64), 0
    for rows in _finite_rows(table):
        total += rows.sum(0)
        count += len(rows)
    return total / max(1, count)


def _finite_rows(table: Tensor) -> Iterator[Tensor]:
    """Blocks of rows, float64."""
    for rows in table.split(TABLE_ROWS):
        block = rows.double()
        finite = block.isfinite().all(1)
        yield block if finite.all() else block[finite]


def codes_of(table: Tensor, components: Tensor) -> Tensor:
    """The codes of some rows, in their dtype, computed in float64 a block at a time.

    Args:
        table: D, one row per id, shape (V, T).
        components: Shape (T, K), float64: Bᵀ of a projection.
    """
    codes = table.new_empty(table.shape[0], components.shape[1])
    for source, target in zip(table.split(TABLE_ROWS), codes.split(TABLE_ROWS), strict=True):
        target.copy_(source.double() @ components)
    return codes


def fold(weight: Tensor, bias: Tensor, projection: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a field's projection into the columns of the linear layer that reads it (paper eq. 12).

    W′(P e′ + s) + b′ = (W′P) e′ + (b′ + W′s). The bias is a sum over the fields.

    Args:
        weight: W′, the columns that read this field, shape (M, T).
        bias: b′ so far, shape (M,).
        projection: P, shape (T, K).
        shift: s, the field's bias, shape (T,).

    Returns:
        Folded columns (M, K) and the new bias (M,), float64.
    """
    W = weight.double()
    return W @ projection.double(), bias.double() + W @ shift.double()


def check_rank(rank: int, width: int) -> None:
    """Refuse a rank that some outputs cannot have.

    Raises:
        ValueError: it is outside 1..M.
    """
    if not 1 <= rank <= width:
        raise ValueError(f"rank {rank} is outside 1..{width}")


def _double(weight: Tensor, bias: Tensor | None, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    W = weight.detach().double()
    b = torch.zeros(W.shape[0], dtype=torch.float64) if bias is None else bias.detach().double()
    return W, b, mean
