from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional

from afm_dist.methods.low_rank import factorize
from afm_dist.methods.low_rank.config import ACTIVATIONS, Activation
from afm_dist.methods.low_rank.factorize import (
    LinearFactors,
    TableFactors,
    afm_linear,
    mean_row,
    principal,
    projected_table,
    svd_linear,
    svd_table,
)
from afm_dist.statistics.accumulator import MomentAccumulator
from afm_dist.statistics.moments import Moments, moments_of_table
from afm_dist.statistics.spectrum import Spectrum, eigendecompose
from afm_dist.tables.folding import fold

B, N, M, T = 2000, 9, 6, 5


def moments_of(rows: Tensor) -> Moments:
    accumulator = MomentAccumulator(rows.shape[1])
    accumulator.update(rows)
    return accumulator.moments


def layer(seed: int = 0, n_inputs: int = N) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and inputs of unequal directions and a mean far from zero, float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(M, n_inputs, generator=generator, dtype=torch.float64)
    bias = torch.randn(M, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0.5, -1.5, n_inputs, dtype=torch.float64)
    x = torch.randn(B, n_inputs, generator=generator, dtype=torch.float64) * scales + 0.7
    return weight, bias, x


def apply(factors: LinearFactors, x: Tensor, activation: Activation) -> Tensor:
    scores = functional.linear(x, factors.first_weight, factors.first_bias)
    if activation != "none":
        scores = scores.relu()
    return functional.linear(scores, factors.second_weight, factors.second_bias)


def mean_squared(error: Tensor) -> float:
    return float(error.square().sum(1).mean())


# Spectra -----------------------------------------------------------------------------------------


def test_components_are_those_of_scikit_learn() -> None:
    weight, bias, x = layer()
    outputs = functional.linear(x, weight, bias)

    spectrum = eigendecompose(moments_of(outputs))

    pca = PCA().fit(outputs.numpy())
    np.testing.assert_allclose(spectrum.eigenvalues * B / (B - 1), pca.explained_variance_, rtol=1e-10)
    alignment = np.abs((pca.components_ * spectrum.eigenvectors.T.numpy()).sum(1))
    np.testing.assert_allclose(alignment, 1, rtol=1e-10)
    np.testing.assert_allclose(
        [spectrum.kept_energy(k) for k in range(1, M + 1)],
        pca.explained_variance_ratio_.cumsum(),
        rtol=1e-12,
    )


def test_eigenvalues_descend_and_vectors_are_orthonormal() -> None:
    weight, bias, x = layer()
    spectrum = eigendecompose(moments_of(functional.linear(x, weight, bias)))

    assert (spectrum.eigenvalues.diff() <= 0).all()
    torch.testing.assert_close(
        spectrum.eigenvectors.T @ spectrum.eigenvectors, torch.eye(M, dtype=torch.float64)
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_entry_of_each_vector_is_positive(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spectrum = eigendecompose(moments_of(torch.randn(300, 12, generator=generator, dtype=torch.float64)))

    largest = spectrum.eigenvectors.gather(0, spectrum.eigenvectors.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize(
    ("columns", "deficiency"),
    [("independent", 0), ("one constant", 1), ("one repeated", 1), ("all constant", 4)],
)
def test_rank_deficiency_counts_the_directions_without_variance(columns: str, deficiency: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    if columns == "one constant":
        rows[:, 2] = 5.0
    if columns == "one repeated":
        rows[:, 2] = rows[:, 0]
    if columns == "all constant":
        rows[:] = 5.0

    spectrum = eigendecompose(moments_of(rows))

    assert spectrum.rank_deficiency == deficiency
    assert (spectrum.eigenvalues >= 0).all()


def test_fewer_rows_than_dimensions_leave_the_rest_without_variance() -> None:
    generator = torch.Generator().manual_seed(0)

    spectrum = eigendecompose(moments_of(torch.randn(4, 60, generator=generator, dtype=torch.float64)))

    assert spectrum.rank_deficiency == 60 - 3
    assert spectrum.rank_for_energy(1.0) == 3
    assert (spectrum.eigenvalues >= 0).all()  # of 57 round-offs about half are negative before clipping


def spectrum_of(*eigenvalues: float) -> Spectrum:
    width = len(eigenvalues)
    return Spectrum(
        mean=torch.zeros(width, dtype=torch.float64),
        eigenvalues=torch.tensor(eigenvalues, dtype=torch.float64),
        eigenvectors=torch.eye(width, dtype=torch.float64),
        rank_deficiency=0,
    )


@pytest.mark.parametrize(
    ("share", "rank"), [(0.01, 1), (0.64, 1), (0.65, 2), (0.8, 2), (0.96, 2), (0.97, 3), (1.0, 4)]
)
def test_the_rank_for_an_energy_is_the_smallest_that_keeps_it(share: float, rank: int) -> None:
    spectrum = spectrum_of(64.0, 32.0, 3.0, 1.0)

    assert spectrum.rank_for_energy(share) == rank
    assert spectrum.kept_energy(rank) >= share


def test_the_rank_by_singular_values_sums_their_square_roots() -> None:
    spectrum = spectrum_of(64.0, 16.0, 4.0, 4.0)  # roots 8, 4, 2, 2

    assert [spectrum.rank_for_singular_values(share) for share in (0.5, 0.51, 0.75, 0.9, 1.0)] == [
        1,
        2,
        2,
        4,
        4,
    ]


def test_outputs_without_variance_need_one_component() -> None:
    spectrum = spectrum_of(0.0, 0.0)

    assert spectrum.rank_for_energy(0.99) == 1
    assert spectrum.kept_energy(1) == 1.0


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        spectrum_of(1.0, 0.5).rank_for_energy(share)


# Linear layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("factorize_linear", [afm_linear, svd_linear])
@pytest.mark.parametrize("with_bias", [True, False])
def test_full_rank_reproduces_the_layer(factorize_linear, with_bias: bool) -> None:
    weight, bias, x = layer()
    outputs = functional.linear(x, weight, bias if with_bias else None)

    factors = factorize_linear(
        weight, bias if with_bias else None, eigendecompose(moments_of(outputs)), M, "none"
    )

    torch.testing.assert_close(apply(factors, x, "none"), outputs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", range(1, M))
def test_the_residual_is_the_sum_of_the_dropped_eigenvalues(rank: int) -> None:
    weight, bias, x = layer()
    outputs = functional.linear(x, weight, bias)
    spectrum = eigendecompose(moments_of(outputs))

    residual = mean_squared(apply(afm_linear(weight, bias, spectrum, rank, "none"), x, "none") - outputs)

    assert residual == pytest.approx(float(spectrum.eigenvalues[rank:].sum()), rel=1e-6)


@pytest.mark.parametrize("rank", range(1, M))
def test_no_other_projection_of_the_same_rank_has_a_smaller_residual(rank: int) -> None:
    weight, bias, x = layer()
    outputs = functional.linear(x, weight, bias)
    spectrum = eigendecompose(moments_of(outputs))
    ours = mean_squared(apply(afm_linear(weight, bias, spectrum, rank, "none"), x, "none") - outputs)
    generator = torch.Generator().manual_seed(rank)

    for size in (1.0, 0.1, 0.01):
        for _ in range(20):
            near = spectrum.eigenvectors[:, :rank] + size * torch.randn(
                M, rank, generator=generator, dtype=torch.float64
            )
            basis = torch.linalg.qr(near).Q
            centred = outputs - outputs.mean(0)
            theirs = mean_squared(centred - centred @ basis @ basis.T)
            assert ours <= theirs * (1 + 1e-12)


@pytest.mark.parametrize("rank", range(1, M))
@pytest.mark.parametrize("seed", range(3))
def test_svd_of_the_weight_is_never_better_on_the_training_rows(rank: int, seed: int) -> None:
    weight, bias, x = layer(seed)
    outputs = functional.linear(x, weight, bias)
    spectrum = eigendecompose(moments_of(outputs))

    errors = [
        mean_squared(apply(method(weight, bias, spectrum, rank, "none"), x, "none") - outputs)
        for method in (afm_linear, svd_linear)
    ]

    assert errors[0] < errors[1]


def test_svd_is_the_best_approximation_of_the_weight() -> None:
    weight, bias, x = layer()
    spectrum = eigendecompose(moments_of(functional.linear(x, weight, bias)))

    factors = svd_linear(weight, bias, spectrum, 3, "none")

    error = torch.linalg.norm(weight - factors.second_weight @ factors.first_weight)
    assert float(error) == pytest.approx(float(torch.linalg.svdvals(weight)[3:].norm()), rel=1e-12)


def test_svd_of_a_layer_with_fewer_inputs_than_the_rank_stops_there() -> None:
    weight, bias, x = layer(n_inputs=3)
    outputs = functional.linear(x, weight, bias)

    factors = svd_linear(weight, bias, eigendecompose(moments_of(outputs)), 5, "none")

    assert factors.first_weight.shape == (3, 3)
    torch.testing.assert_close(apply(factors, x, "none"), outputs, rtol=0, atol=1e-10)


def test_plain_is_equation_5_with_a_relu_between() -> None:
    weight, bias, x = layer()
    spectrum = eigendecompose(moments_of(functional.linear(x, weight, bias)))
    U, mean = spectrum.eigenvectors[:, :3], spectrum.mean

    outputs = apply(afm_linear(weight, bias, spectrum, 3, "plain"), x, "plain")

    expected = (x @ weight.T @ U).relu() @ U.T + mean + U @ U.T @ (bias - mean)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("factorize_linear", [afm_linear, svd_linear])
@pytest.mark.parametrize("rank", [2, M])
def test_a_shift_beyond_all_data_makes_the_relu_the_identity(factorize_linear, rank: int) -> None:
    weight, bias, x = layer()
    spectrum = eigendecompose(moments_of(functional.linear(x, weight, bias)))

    shifted = apply(factorize_linear(weight, bias, spectrum, rank, "shifted", 50.0), x, "shifted")
    linear = apply(factorize_linear(weight, bias, spectrum, rank, "none"), x, "none")

    torch.testing.assert_close(shifted, linear, rtol=0, atol=1e-10)


def test_the_default_shift_cuts_only_the_tail_and_plain_much_more() -> None:
    weight, bias, x = layer()
    outputs = functional.linear(x, weight, bias)
    spectrum = eigendecompose(moments_of(outputs))
    linear = apply(afm_linear(weight, bias, spectrum, 3, "none"), x, "none")

    difference = {
        mode: mean_squared(apply(afm_linear(weight, bias, spectrum, 3, mode), x, mode) - linear)
        for mode in ACTIVATIONS
    }

    variance = float(spectrum.eigenvalues.sum())
    assert difference["shifted"] < 0.01 * variance
    assert difference["plain"] > 10 * difference["shifted"]


@pytest.mark.parametrize("factorize_linear", [afm_linear, svd_linear])
@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_the_shift_follows_from_mean_and_deviation_of_the_scores(factorize_linear, kappa: float) -> None:
    weight, bias, x = layer()
    spectrum = eigendecompose(moments_of(functional.linear(x, weight, bias)))

    shifted = factorize_linear(weight, bias, spectrum, 4, "shifted", kappa)
    unshifted = factorize_linear(weight, bias, spectrum, 4, "none")

    # Eq. 5 leaves the bias out of the scores of AFM; the shifted form carries it.
    carried = unshifted.second_weight.T @ bias if factorize_linear is afm_linear else torch.zeros(4)
    scores = x @ shifted.first_weight.T + carried
    expected = (kappa * scores.std(0, correction=0) - scores.mean(0)).clamp(min=0)
    torch.testing.assert_close(shifted.first_bias, expected + carried, rtol=1e-8, atol=1e-10)
    assert (expected > 0).any()


def test_svd_shift_of_a_rank_deficient_weight_is_finite() -> None:
    weight, bias, x = layer()
    weight[1:] = weight[0]
    outputs = functional.linear(x, weight, bias)

    factors = svd_linear(weight, bias, eigendecompose(moments_of(outputs)), M, "shifted", 50.0)

    torch.testing.assert_close(apply(factors, x, "shifted"), outputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [0, -1, M + 1])
def test_a_rank_outside_the_layer_is_refused(rank: int) -> None:
    weight, bias, x = layer()
    spectrum = eigendecompose(moments_of(functional.linear(x, weight, bias)))

    for method in (afm_linear, svd_linear):
        with pytest.raises(ValueError, match=rf"rank {rank} is outside 1\.\.{M}"):
            method(weight, bias, spectrum, rank, "none")


# Tables ------------------------------------------------------------------------------------------


def table_and_counts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1, T, dtype=torch.float64)
    table = torch.randn(40, T, generator=generator, dtype=torch.float64) * scales + 0.3
    return table, torch.randint(0, 9, (40,), generator=generator)


def afm_table(table: Tensor, spectrum: Spectrum, rank: int) -> TableFactors:
    return projected_table(table, principal(spectrum, rank))


def expand(codes: Tensor, projection: Tensor, bias: Tensor) -> Tensor:
    return codes @ projection.T + bias


def test_full_rank_reproduces_the_table_of_both_methods() -> None:
    table, counts = table_and_counts()
    spectrum = eigendecompose(moments_of_table(table, counts))

    for factors in (afm_table(table, spectrum, T), svd_table(table, T)):
        rebuilt = expand(factors.codes, factors.projection, factors.bias)
        torch.testing.assert_close(rebuilt, table, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", range(1, T))
def test_the_residual_of_a_table_over_its_occurrences_is_what_was_dropped(rank: int) -> None:
    table, counts = table_and_counts()
    spectrum = eigendecompose(moments_of_table(table, counts))

    factors = afm_table(table, spectrum, rank)

    error = expand(factors.codes, factors.projection, factors.bias) - table
    residual = float((error.square().sum(1) * counts).sum() / counts.sum())
    assert residual == pytest.approx(float(spectrum.eigenvalues[rank:].sum()), rel=1e-6)


def test_svd_of_a_table_is_its_best_approximation() -> None:
    table, _ = table_and_counts()

    factors = svd_table(table, 2)

    error = torch.linalg.norm(expand(factors.codes, factors.projection, factors.bias) - table)
    assert float(error) == pytest.approx(float(torch.linalg.svdvals(table)[2:].norm()), rel=1e-9)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_svd_leaves_out_rows_that_are_not_finite_as_those_that_never_occur_may_be(
    broken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factorize, "TABLE_ROWS", 7)
    table, _ = table_and_counts()
    damaged = table.clone()
    damaged[10, 1] = broken
    # A block of which no row is left.
    damaged[21:28] = broken
    finite = damaged.isfinite().all(1)

    factors, alone = svd_table(damaged, 2), svd_table(table[finite], 2)

    torch.testing.assert_close(factors.projection, alone.projection, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(factors.codes[finite], alone.codes, rtol=1e-9, atol=1e-12)
    # No other than with ``afm``: a row that was broken stays so, it is not given made-up codes.
    assert not factors.codes[~finite].isfinite().all(1).any()
    torch.testing.assert_close(mean_row(damaged), table[finite].mean(0), rtol=1e-12, atol=1e-14)
    assert (mean_row(torch.full_like(table, broken)) == 0).all()


def test_tables_are_factorized_block_by_block_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    table, counts = table_and_counts()
    spectrum = eigendecompose(moments_of_table(table, counts))
    whole = afm_table(table, spectrum, 2), svd_table(table, 2)

    monkeypatch.setattr(factorize, "TABLE_ROWS", 7)
    blocks = afm_table(table, spectrum, 2), svd_table(table, 2)

    for left, right in zip(whole, blocks, strict=True):
        torch.testing.assert_close(left.codes, right.codes, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(left.projection, right.projection, rtol=1e-9, atol=1e-12)


def test_codes_keep_the_dtype_of_the_table() -> None:
    table, counts = table_and_counts()
    spectrum = eigendecompose(moments_of_table(table, counts))

    assert afm_table(table.float(), spectrum, 2).codes.dtype == torch.float32
    assert svd_table(table.float(), 2).codes.dtype == torch.float32


@pytest.mark.parametrize("rank", [0, T + 1])
def test_a_code_wider_than_the_table_is_refused(rank: int) -> None:
    table, counts = table_and_counts()
    spectrum = eigendecompose(moments_of_table(table, counts))

    with pytest.raises(ValueError, match=rf"outside 1\.\.{T}"):
        afm_table(table, spectrum, rank)
    with pytest.raises(ValueError, match=rf"outside 1\.\.{T}"):
        svd_table(table, rank)


def test_folding_several_fields_sums_their_biases() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(M, 3 * T, generator=generator, dtype=torch.float64)
    bias = torch.randn(M, generator=generator, dtype=torch.float64)
    projections = torch.randn(3, T, 2, generator=generator, dtype=torch.float64)
    shifts = torch.randn(3, T, generator=generator, dtype=torch.float64)
    codes = torch.randn(50, 3, 2, generator=generator, dtype=torch.float64)

    folded, folded_bias = [], bias
    for i in range(3):
        columns, folded_bias = fold(weight[:, i * T : (i + 1) * T], folded_bias, projections[i], shifts[i])
        folded.append(columns)

    unfolded = torch.cat([expand(codes[:, i], projections[i], shifts[i]) for i in range(3)], 1)
    torch.testing.assert_close(
        functional.linear(codes.flatten(1), torch.cat(folded, 1), folded_bias),
        functional.linear(unfolded, weight, bias),
        rtol=0,
        atol=1e-12,
    )
