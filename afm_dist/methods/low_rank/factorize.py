"""Pure mathematics of low rank: projections, and the factors they give.

Shape legend: M layer outputs, N layer inputs, K rank, V rows of a table, T embedding dimension.
Everything here is a function of tensors, in float64: no files, no Ray, no modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from afm_dist.methods.low_rank.config import DEFAULT_KAPPA, Activation
from afm_dist.statistics.moments import TABLE_ROWS
from afm_dist.statistics.spectrum import Spectrum, fix_signs


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
    """Find the map with the least mean squared error, E‖y − ŷ‖²: on the leading eigenvectors.

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
    """Compute the control: truncated SVD of the weight, W ≈ (U_k S_k^½)(S_k^½ V_kᵀ) (paper, section 3.1).

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
    """Compute the control: truncated SVD of the table itself, every row counting once (section 3.1).

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
    """Compute the mean of a table's rows, each counting once, but for those that hold NaN or infinity.

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
    """Compute the codes of some rows, in their dtype, in float64 a block at a time.

    Args:
        table: D, one row per id, shape (V, T).
        components: Shape (T, K), float64: Bᵀ of a projection.
    """
    codes = table.new_empty(table.shape[0], components.shape[1])
    for source, target in zip(table.split(TABLE_ROWS), codes.split(TABLE_ROWS), strict=True):
        target.copy_(source.double() @ components)
    return codes


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
