from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import EmpiricalCovariance

from afm_dist.statistics import moments as moments_module
from afm_dist.statistics.moments import MomentAccumulator, Moments, moments_of_table

BOUND_FLOAT32 = 1e-6
BOUND_FLOAT64 = 1e-8


def two_pass(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: mean and covariance in NumPy float64, mean first, then centred products."""
    values = rows.numpy().astype(np.float64)
    mean = values.mean(0)
    # A second centring removes what is left of the mean's own rounding.
    centred = values - mean
    centred -= centred.mean(0)
    return mean, centred.T @ centred / len(values)


def accumulate(rows: torch.Tensor, batch_size: int) -> Moments:
    accumulator = MomentAccumulator(rows.shape[1])
    for batch in rows.split(batch_size):
        accumulator.update(batch)
    return accumulator.moments


def relative_error(covariance: torch.Tensor, oracle: np.ndarray) -> float:
    return float(np.linalg.norm(covariance.numpy() - oracle) / np.linalg.norm(oracle))


def correlated(
    rows: int, width: int, ratio: float, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    """Rows of unit deviation, correlated, whose mean is ``ratio`` deviations."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mixing
    return (noise + ratio).to(dtype)


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


@pytest.mark.parametrize("ratio", [0.0, 1e6])
def test_merged_parts_meet_the_bound(ratio: float) -> None:
    rows = correlated(4000, 16, ratio)

    merged = Moments.empty(16)
    for part in rows.split([1, 999, 3, 1500, 1497]):
        merged = merged.merge(accumulate(part, 128))

    assert relative_error(merged.covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


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


def test_merging_other_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="widths 2 and 3"):
        Moments.empty(2).merge(Moments.empty(3))


def test_the_covariance_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        _ = Moments.empty(2).covariance


def test_one_row_has_no_scatter() -> None:
    moments = accumulate(torch.tensor([[3.0, -1.0]]), 1)

    assert moments.count == 1
    assert moments.mean.tolist() == [3.0, -1.0]
    assert torch.equal(moments.scatter, torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("change", ["count", "mean", "scatter"])
def test_the_digest_sees_every_bit(change: str) -> None:
    rows = correlated(50, 3, 1.0, torch.float64)
    moments = accumulate(rows, 50)
    mean, scatter = moments.mean.clone(), moments.scatter.clone()
    if change == "mean":
        mean[1] = torch.nextafter(mean[1], torch.tensor(10.0, dtype=torch.float64))
    if change == "scatter":
        scatter[2, 2] = torch.nextafter(scatter[2, 2], torch.tensor(1e9, dtype=torch.float64))
    changed = Moments(count=moments.count + (change == "count"), mean=mean, scatter=scatter)

    assert changed.digest() != moments.digest()


# Merging is that of sets of rows -----------------------------------------------------------------


@st.composite
def some_moments(draw: st.DrawFn) -> tuple[Moments, torch.Tensor]:
    count = draw(st.integers(0, 20))
    offset = draw(st.sampled_from([0.0, 1.0, -1e3, 1e6]))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = torch.randn(count, 3, generator=generator, dtype=torch.float64) * scale + offset
    return accumulate(rows, 20) if count else Moments.empty(3), rows


def assert_same(left: Moments, right: Moments, rows: torch.Tensor) -> None:
    """Equal up to the rounding of float64, on the scale of the rows and of their scatter."""
    largest = float(rows.abs().max()) if len(rows) else 0.0
    spread = float(torch.linalg.norm(right.scatter))
    assert left.count == right.count
    torch.testing.assert_close(left.mean, right.mean, rtol=0, atol=1e-14 * largest)
    # The means of the parts are only known to their last bit: the error of their distance squared.
    rounding = 1e-13 * spread + 1e-14 * largest * (len(rows) * spread) ** 0.5
    torch.testing.assert_close(
        left.scatter, right.scatter, rtol=0, atol=rounding + len(rows) * (1e-15 * largest) ** 2
    )


@settings(deadline=None, max_examples=100)
@given(some_moments(), some_moments())
def test_merge_is_commutative(
    left: tuple[Moments, torch.Tensor], right: tuple[Moments, torch.Tensor]
) -> None:
    rows = torch.cat([left[1], right[1]])

    assert_same(left[0].merge(right[0]), right[0].merge(left[0]), rows)


@settings(deadline=None, max_examples=100)
@given(some_moments(), some_moments(), some_moments())
def test_merge_is_associative(
    first: tuple[Moments, torch.Tensor],
    second: tuple[Moments, torch.Tensor],
    third: tuple[Moments, torch.Tensor],
) -> None:
    rows = torch.cat([first[1], second[1], third[1]])

    left = first[0].merge(second[0]).merge(third[0])
    right = first[0].merge(second[0].merge(third[0]))

    assert_same(left, right, rows)


@settings(deadline=None, max_examples=50)
@given(some_moments())
def test_no_rows_are_the_identity_of_merge(moments: tuple[Moments, torch.Tensor]) -> None:
    empty = Moments.empty(3)

    assert empty.merge(moments[0]).digest() == moments[0].digest()
    assert moments[0].merge(empty).digest() == moments[0].digest()


@settings(deadline=None, max_examples=50)
@given(some_moments(), some_moments())
def test_merge_is_that_of_the_rows_together(
    left: tuple[Moments, torch.Tensor], right: tuple[Moments, torch.Tensor]
) -> None:
    rows = torch.cat([left[1], right[1]])
    if len(rows) == 0:
        return
    mean, covariance = two_pass(rows)
    oracle = Moments(
        count=len(rows), mean=torch.from_numpy(mean), scatter=torch.from_numpy(covariance) * len(rows)
    )

    assert_same(left[0].merge(right[0]), oracle, rows)


# Tables with counts ------------------------------------------------------------------------------


def table_and_counts(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(rows, width, generator=generator, dtype=torch.float64) + 3
    return table, torch.randint(0, 6, (rows,), generator=generator)


@pytest.mark.parametrize("block", [1, 3, 16, 49, 50, 51, 1 << 16])
def test_counts_equal_repeating_the_rows(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "TABLE_ROWS", block)
    table, counts = table_and_counts(50, 5)

    moments = moments_of_table(table, counts)

    repeated = torch.from_numpy(np.repeat(table.numpy(), counts.numpy(), axis=0))
    mean, covariance = two_pass(repeated)
    assert moments.count == len(repeated)
    np.testing.assert_allclose(moments.mean.numpy(), mean, rtol=1e-12)
    assert relative_error(moments.covariance, covariance) <= 1e-12


def test_counts_of_a_far_mean_meet_the_float64_bound() -> None:
    table, counts = table_and_counts(200, 4)
    table += 1e6

    moments = moments_of_table(table, counts)

    repeated = torch.from_numpy(np.repeat(table.numpy(), counts.numpy(), axis=0))
    assert relative_error(moments.covariance, two_pass(repeated)[1]) <= BOUND_FLOAT64


def test_rows_that_never_occur_do_not_matter() -> None:
    table, counts = table_and_counts(50, 5)
    counts[7] = 0
    before = moments_of_table(table, counts).digest()

    table[7] = float("nan")

    assert moments_of_table(table, counts).digest() == before


def test_a_table_without_occurrences_is_empty() -> None:
    table, counts = table_and_counts(50, 5)

    assert moments_of_table(table, torch.zeros_like(counts)).digest() == Moments.empty(5).digest()


@pytest.mark.parametrize(
    ("counts", "message"),
    [([1, 2], "2.* counts for a table of 3 rows"), ([1, -1, 2], "negative counts")],
    ids=["too few", "negative"],
)
def test_counts_that_cannot_be_are_refused(counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moments_of_table(torch.zeros(3, 2), torch.tensor(counts))


def test_a_table_with_nan_in_a_row_that_occurs_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        moments_of_table(torch.tensor([[1.0], [float("nan")]]), torch.tensor([1, 1]))
