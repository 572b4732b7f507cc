from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance

from afm_dist.statistics.accumulator import BLOCK_ROWS, MomentAccumulator, Workspace
from afm_dist.statistics.moments import Moments
from tests.statistics.oracle import (
    BOUND_FLOAT32,
    BOUND_FLOAT64,
    accumulate,
    correlated,
    relative_error,
    two_pass,
)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000, 5000])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, BOUND_FLOAT32), (torch.float64, BOUND_FLOAT64)], ids=["f32", "f64"]
)
def test_covariance_meets_the_bound(ratio: float, batch_size: int, dtype: torch.dtype, bound: float) -> None:
    rows = correlated(3000 if batch_size > 1 else 600, 24, ratio, dtype)

    moments = accumulate(rows, batch_size)

    mean, covariance = two_pass(rows)
    assert moments.count == len(rows)
    assert relative_error(moments.covariance, covariance) <= bound
    np.testing.assert_allclose(moments.mean.numpy(), mean, rtol=1e-12, atol=1e-7)  # in deviations


def test_covariance_is_that_of_numpy_and_scikit_learn() -> None:
    rows = correlated(2000, 12, 0.5, torch.float64)

    covariance = accumulate(rows, 300).covariance.numpy()

    np.testing.assert_allclose(covariance, np.cov(rows.numpy().T, bias=True), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(
        covariance, EmpiricalCovariance().fit(rows.numpy()).covariance_, rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("batch_sizes", [[1, 8191], [10, 4000, 4182], [64, 64, 8064]], ids=str)
@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
def test_an_unrepresentative_first_batch_keeps_the_bound(batch_sizes: list[int], distance: float) -> None:
    rows = correlated(sum(batch_sizes), 16, 0.0)
    rows[: batch_sizes[0]] += distance

    accumulator = MomentAccumulator(16)
    for batch in rows.split(batch_sizes):
        accumulator.update(batch)

    assert relative_error(accumulator.moments.covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


def test_an_unrepresentative_start_of_a_long_batch_keeps_the_bound() -> None:
    rows = correlated(100_000, 8, 0.0)
    rows[:1500] += 1e5

    moments = accumulate(rows, len(rows))

    assert relative_error(moments.covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


@pytest.mark.parametrize("distinct", [2, 3, 20, 100])
def test_rows_of_a_few_distinct_values_keep_the_bound(distinct: int) -> None:
    # Equal products round alike, so float32 errors add up instead of cancelling.
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(distinct, 16, generator=generator)
        rows = values[torch.randint(0, distinct, (8192,), generator=generator)]

        assert relative_error(accumulate(rows, 4096).covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


@pytest.mark.parametrize(("width", "distinct", "seed"), [(6, 2, 279), (8, 3, 72), (16, 3, 224), (24, 3, 173)])
def test_a_few_large_columns_of_few_values_keep_the_bound(width: int, distinct: int, seed: int) -> None:
    # In these, the diagonal is rounded well by chance while the rest is not.
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(distinct, width, generator=generator)
    values *= 10 ** torch.randn(width, generator=generator).mul(0.5)
    shares = torch.rand(distinct, generator=generator) ** 2
    rows = values[torch.multinomial(shares, 2048, replacement=True, generator=generator)]

    assert relative_error(accumulate(rows, 2048).covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


def test_a_drifting_mean_keeps_the_bound() -> None:
    rows = correlated(20_000, 8, 0.0)
    rows += torch.linspace(-1e4, 1e4, len(rows))[:, None]

    assert relative_error(accumulate(rows, 500).covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


def test_each_column_keeps_its_own_precision_next_to_a_large_one() -> None:
    rows = correlated(4000, 4, 1e3)
    rows[:, 0] *= 1e6

    covariance = accumulate(rows, 512).covariance.numpy()

    oracle = two_pass(rows)[1]
    scale = np.sqrt(np.outer(np.diag(oracle), np.diag(oracle)))
    assert np.max(np.abs(covariance - oracle) / scale) <= 2 * BOUND_FLOAT32


def test_constant_columns_have_exactly_no_scatter() -> None:
    rows = torch.full((2500, 3), 0.1)

    moments = accumulate(rows, 100)

    assert torch.equal(moments.scatter, torch.zeros(3, 3, dtype=torch.float64))


def test_float32_values_whose_squares_overflow_are_counted_in_float64() -> None:
    rows = correlated(500, 6, 0.0) * 1e25

    moments = accumulate(rows, 100)

    assert relative_error(moments.covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


def test_float32_values_whose_differences_overflow_are_counted_in_float64() -> None:
    rows = torch.tensor([[3e38], [3e38], [-3e38]])

    moments = accumulate(rows, 3)

    assert relative_error(moments.covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


def test_float32_values_whose_squares_are_lost_to_underflow_are_counted_in_float64() -> None:
    rows = correlated(2 * BLOCK_ROWS, 6, 0.0) * 1e-21

    moments = accumulate(rows, len(rows))

    assert relative_error(moments.covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


def test_ordinary_float32_rows_are_not_done_again_in_float64() -> None:
    rows = correlated(4 * BLOCK_ROWS, 100, 1.0)

    error = relative_error(accumulate(rows, len(rows)).covariance, two_pass(rows)[1])

    assert 1e-9 < error <= BOUND_FLOAT32  # float64 would leave no more than 1e-13


def test_float64_values_whose_squares_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="overflow float64"):
        accumulate(torch.tensor([[1e200], [-1e200]], dtype=torch.float64), 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_count_as_their_values(dtype: torch.dtype) -> None:
    rows = correlated(1000, 5, 2.0).to(dtype)

    moments = accumulate(rows, 128)

    assert relative_error(moments.covariance, two_pass(rows.float())[1]) <= BOUND_FLOAT32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", [0, 1500])
def test_values_that_are_not_finite_are_refused(value: float, dtype: torch.dtype, row: int) -> None:
    rows = correlated(2000, 3, 0.0, dtype)
    rows[row, 1] = value

    with pytest.raises(ValueError, match="NaN or infinity"):
        accumulate(rows, 2000)


def test_a_refused_batch_leaves_what_was_accumulated() -> None:
    accumulator = MomentAccumulator(2)
    accumulator.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    before = accumulator.moments.digest()

    with pytest.raises(ValueError, match="NaN"):
        accumulator.update(torch.tensor([[float("nan"), 0.0]]))

    assert accumulator.moments.digest() == before


def test_an_empty_batch_changes_nothing() -> None:
    accumulator = MomentAccumulator(2)
    accumulator.update(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    before = accumulator.moments.digest()

    accumulator.update(torch.empty(0, 2))

    assert accumulator.moments.digest() == before


def test_empty_batches_alone_are_no_rows() -> None:
    accumulator = MomentAccumulator(2)

    accumulator.update(torch.empty(0, 2))

    assert accumulator.moments.digest() == Moments.empty(2).digest()


@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (3,), (2, 2, 3)], ids=str)
def test_rows_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected rows of shape \(B, 3\)"):
        MomentAccumulator(3).update(torch.zeros(shape))


def test_one_row_has_no_scatter() -> None:
    moments = accumulate(torch.tensor([[3.0, -1.0]]), 1)

    assert moments.count == 1
    assert moments.mean.tolist() == [3.0, -1.0]
    assert torch.equal(moments.scatter, torch.zeros(2, 2, dtype=torch.float64))


# Any batches, any context ------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 64, 1000, BLOCK_ROWS, 1025, 3000])
def test_the_bits_follow_from_the_rows_not_from_their_batches(batch_size: int) -> None:
    rows = correlated(3500, 5, 10.0)

    assert accumulate(rows, batch_size).digest() == accumulate(rows, len(rows)).digest()


def test_looking_at_the_moments_changes_no_bit() -> None:
    rows = correlated(5000, 5, 10.0)
    accumulator = MomentAccumulator(5)

    for batch in rows.split(700):
        accumulator.update(batch)
        counted = accumulator.moments.count

    assert counted == len(rows)
    assert accumulator.moments.digest() == accumulate(rows, len(rows)).digest()


def test_rows_may_be_overwritten_after_the_update() -> None:
    rows = correlated(100, 5, 1.0)
    expected = accumulate(rows, 100).digest()
    accumulator = MomentAccumulator(5)

    accumulator.update(rows)
    rows.relu_()

    assert accumulator.moments.digest() == expected


def test_rows_of_both_precisions_meet_the_bound_together() -> None:
    rows = correlated(6000, 5, 10.0, torch.float64)
    accumulator = MomentAccumulator(5)
    for i, batch in enumerate(rows.split(700)):
        accumulator.update(batch.float() if i % 2 else batch)

    moments = accumulator.moments

    assert moments.count == len(rows)
    assert relative_error(moments.covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


def test_batches_in_and_out_of_inference_mode_go_together() -> None:
    rows = correlated(3500, 5, 1.0)
    accumulator = MomentAccumulator(5)

    with torch.inference_mode():
        accumulator.update(rows[:1500] + 0)
    accumulator.update(rows[1500:].requires_grad_())

    assert accumulator.moments.digest() == accumulate(rows.detach(), 3500).digest()
    assert not accumulator.moments.scatter.is_inference()


def test_layers_in_turn_share_their_memory_and_no_values() -> None:
    layers = [correlated(3500, 5, 10.0, seed=seed) for seed in range(3)]
    workspace = Workspace()
    accumulators = [MomentAccumulator(5, workspace) for _ in layers]

    for batches in zip(*(rows.split(1000) for rows in layers), strict=True):
        for accumulator, batch in zip(accumulators, batches, strict=True):
            accumulator.update(batch)

    for accumulator, rows in zip(accumulators, layers, strict=True):
        assert accumulator.moments.digest() == accumulate(rows, 1000).digest()
    full = torch.empty(BLOCK_ROWS, 5)
    assert workspace.product(full) is workspace.product(full)
