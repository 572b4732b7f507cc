from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.statistics import moments as moments_module
from afm_dist.statistics.moments import Moments, moments_of_table
from tests.statistics.oracle import (
    BOUND_FLOAT32,
    BOUND_FLOAT64,
    accumulate,
    correlated,
    relative_error,
    two_pass,
)


@pytest.mark.parametrize("ratio", [0.0, 1e6])
def test_merged_parts_meet_the_bound(ratio: float) -> None:
    rows = correlated(4000, 16, ratio)

    merged = Moments.empty(16)
    for part in rows.split([1, 999, 3, 1500, 1497]):
        merged = merged.merge(accumulate(part, 128))

    assert relative_error(merged.covariance, two_pass(rows)[1]) <= BOUND_FLOAT32


def test_merging_other_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="widths 2 and 3"):
        Moments.empty(2).merge(Moments.empty(3))


def test_the_covariance_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        _ = Moments.empty(2).covariance


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


def test_the_number_of_threads_changes_no_bit() -> None:
    table, counts = table_and_counts(20_000, 32)

    found = set()
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found.add(moments_of_table(table, counts).digest())
        finally:
            torch.set_num_threads(before)

    assert len(found) == 1


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
