"""Plain tables of a user's model: ``nn.Embedding`` and ``nn.EmbeddingBag``."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.plan import Plan
from afm_dist.compression.rewrite import compress_
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.layers import ProjectedEmbedding, ProjectedEmbeddingBag
from afm_dist.methods.low_rank.ranks import FixedRank, plan_ranks
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments import Moments, moments_of_sums

V, T = 30, 5
PADDING = 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_ids(*shape: int, below: int = V, seed: int = 0) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def compressed(model: nn.Module, batches: list[Any], rank: int, *, method: Any = "afm") -> Plan:
    moments = collect_moments(model, batches, ["*"], forward_fn=call)
    plan = plan_ranks(dict(moments), FixedRank(rank=rank), method=method)
    compress_(model, plan, moments)
    return plan


def call(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch) if isinstance(batch, dict) else model(batch)


# nn.Embedding ------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One table for two fields and for a list of ids, padded."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(V, T, **options).double()
        self.padding = self.table.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        first, second, listed = self.table(ids[:, 0]), self.table(ids[:, 1]), self.table(ids[:, 2:])
        return torch.cat([first, second, listed.sum(1)], 1)


def shared(**options: Any) -> Shared:
    model = Shared(**options)
    with torch.no_grad():
        model.table.weight.copy_(random(V, T) + 3)
        if model.padding is not None:
            model.table.weight[model.padding] = 0
    return model


@pytest.mark.parametrize("method", ["afm", "svd"])
@pytest.mark.parametrize("padding", [None, PADDING, -1])
@pytest.mark.parametrize("sparse", [True, False])
def test_full_rank_reproduces_a_table_of_several_fields(
    method: str, padding: int | None, sparse: bool
) -> None:
    model, ids = shared(padding_idx=padding, sparse=sparse), random_ids(200, 6)
    expected = model(ids)

    compressed(model, [ids], T, method=method)

    assert isinstance(model.table, ProjectedEmbedding)
    assert model.table.codes.sparse == sparse
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-10)


def test_the_error_of_every_use_is_that_of_the_dropped_eigenvalues() -> None:
    model, ids = shared(padding_idx=PADDING), random_ids(200, 6)
    rows = model.table(ids).flatten(0, 1)[ids.flatten() != PADDING].detach()
    dropped = torch.linalg.eigvalsh(rows.T.cov(correction=0))[:-2].sum()
    before = model.table(ids)

    compressed(model, [ids], 2)

    error = (model.table(ids) - before).square().sum() / len(rows)
    assert float(error.detach()) == pytest.approx(float(dropped), rel=1e-9)


def test_the_padded_row_keeps_its_value_and_gets_no_gradient() -> None:
    model, ids = shared(padding_idx=PADDING), torch.full((4, 6), PADDING)
    with torch.no_grad():
        model.table.weight[PADDING] = 7.0
    compressed(model, [random_ids(200, 6)], 1)

    result = model.train()(ids)
    result.sum().backward()

    assert torch.equal(model.table(ids), torch.full((4, 6, T), 7.0, dtype=torch.float64))
    assert all(not p.grad.any() for p in model.parameters())


def test_the_padded_row_comes_back_from_a_checkpoint(tmp_path: Any) -> None:
    model, ids = shared(padding_idx=PADDING), random_ids(20, 6)
    plan = compressed(model, [ids], 2)

    save_pretrained(model, str(tmp_path), plan=plan)
    loaded = from_pretrained(str(tmp_path), model=shared(padding_idx=PADDING))

    assert torch.equal(loaded(ids), model(ids))


# nn.EmbeddingBag ---------------------------------------------------------------------------------


@st.composite
def bags(draw: st.DrawFn) -> tuple[nn.EmbeddingBag, list[dict[str, Tensor]]]:
    """A bag of any kind and two batches for it, empty bags included."""
    mode = draw(st.sampled_from(["sum", "mean"]))
    matrix = draw(st.booleans())
    last = not matrix and draw(st.booleans())
    padding = draw(st.sampled_from([None, PADDING]))
    weighted = mode == "sum" and draw(st.booleans())
    bag = nn.EmbeddingBag(V, T, mode=mode, padding_idx=padding, include_last_offset=last).double()
    with torch.no_grad():
        bag.weight.copy_(random(V, T, seed=draw(st.integers(0, 9))) + draw(st.sampled_from([0.0, 5.0])))
    batches = []
    for seed in range(2):
        if matrix:
            batch = {"input": random_ids(40, draw(st.integers(1, 4)), below=6, seed=seed)}
        else:
            sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=40))
            ends = list(accumulate(sizes))
            batch = {
                "input": random_ids(ends[-1], below=6, seed=seed),
                "offsets": torch.tensor([0, *ends] if last else [0, *ends[:-1]]),
            }
        if weighted:
            batch["per_sample_weights"] = random(*batch["input"].shape, seed=seed + 7)
        batches.append(batch)
    return bag, batches


def wrapped(bag: nn.EmbeddingBag) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = bag

        def forward(self, **batch: Tensor) -> Tensor:
            return self.bag(**batch)

    return Model()


def sums_of(bag: nn.EmbeddingBag, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Every bag and its weight by loops, from the definition of ``nn.EmbeddingBag``."""
    sums, totals = [], []
    for batch in batches:
        ids, weights = batch["input"], batch.get("per_sample_weights", torch.ones_like(batch["input"]))
        if ids.ndim == 1:
            starts = batch["offsets"].tolist()
            ends = starts[1:] if bag.include_last_offset else [*starts[1:], len(ids)]
            ids, weights = ([x[a:b] for a, b in zip(starts, ends, strict=False)] for x in (ids, weights))
        for some, their in zip(ids, weights, strict=True):
            kept = [(int(i), float(w)) for i, w in zip(some, their, strict=True) if i != bag.padding_idx]
            total = sum(w for _, w in kept)
            scale = len(kept) if bag.mode == "mean" and kept else 1
            sums.append(
                sum((w * bag.weight[i].detach() for i, w in kept), torch.zeros(T, dtype=torch.float64))
                / scale
            )
            totals.append(total / scale)
    return torch.stack(sums), torch.tensor(totals, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(bags(), st.sampled_from(["afm", "svd"]))
def test_full_rank_reproduces_any_bag(made: tuple[nn.EmbeddingBag, list], method: str) -> None:
    bag, batches = made
    model = wrapped(bag)
    expected = [model(**batch) for batch in batches]

    compressed(model, batches, T, method=method)

    assert isinstance(model.bag, ProjectedEmbeddingBag)
    for batch, before in zip(batches, expected, strict=True):
        torch.testing.assert_close(model(**batch), before, rtol=0, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(bags(), st.integers(1, T))
def test_the_mean_square_of_a_bags_error_is_that_of_the_dropped_eigenvalues(
    made: tuple[nn.EmbeddingBag, list], rank: int
) -> None:
    bag, batches = made
    y, W = sums_of(bag, batches)
    model = wrapped(bag)
    moments = collect_moments(model, batches, ["bag"], forward_fn=call)["bag"]
    # Regression of the bags on their weights, through the origin.
    slope = (W @ y) / W.square().sum() if W.any() else torch.zeros(T, dtype=torch.float64)
    residual = y - torch.outer(W, slope)
    dropped = torch.linalg.eigvalsh(residual.T @ residual / len(y)).flip(0)[rank:].clamp(min=0).sum()
    before = torch.cat([model(**batch) for batch in batches]).detach()
    torch.testing.assert_close(before, y)

    compressed(model, batches, rank)

    error = (torch.cat([model(**batch) for batch in batches]) - before).square().sum(1).mean()
    assert moments.count == len(y)
    torch.testing.assert_close(moments.covariance, residual.T @ residual / len(y))
    torch.testing.assert_close(error.detach(), dropped, rtol=1e-7, atol=1e-12)


def fitted_error(incidence: Tensor, table: Tensor, rank: int, seed: int) -> float:
    """Least mean square over all codes, projections and shifts, found by descent from a random start."""
    parameters = [
        random(*shape, seed=seed + i).requires_grad_()
        for i, shape in enumerate([(len(table), rank), (rank, T), (T,)])
    ]
    codes, projection, shift = parameters
    optimizer = torch.optim.LBFGS(parameters, lr=1, max_iter=400, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (incidence @ (table - codes @ projection - shift)).square().sum(1).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return float(loss().detach())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rank", [1, 2])
def test_no_other_table_of_this_rank_makes_smaller_errors(weighted: bool, rank: int) -> None:
    bag = nn.EmbeddingBag(8, T, mode="sum").double()
    with torch.no_grad():
        bag.weight.copy_(random(8, T) + 2)
    sizes = random_ids(60, below=5, seed=1).tolist()
    ids = random_ids(sum(sizes), below=8, seed=2)
    batch = {"input": ids, "offsets": torch.tensor([0, *accumulate(sizes)][:-1])}
    if weighted:
        batch["per_sample_weights"] = random(len(ids), seed=3)
    incidence = torch.zeros(60, 8, dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(60), torch.tensor(sizes))
    ones = torch.ones(len(ids), dtype=torch.float64)
    incidence.index_put_((rows, ids), batch.get("per_sample_weights", ones), accumulate=True)
    table, model = bag.weight.detach().clone(), wrapped(bag)
    before = model(**batch).detach()

    compressed(model, [batch], rank)

    error = float((model(**batch) - before).square().sum(1).mean().detach())
    best = min(fitted_error(incidence, table, rank, seed) for seed in range(3))
    assert error == pytest.approx(best, rel=1e-4)


def test_gradients_of_a_full_rank_bag_are_those_of_the_bag() -> None:
    bag = nn.EmbeddingBag(V, T, mode="sum", padding_idx=PADDING).double()
    batch = {"input": random_ids(20, 4), "per_sample_weights": random(20, 4).requires_grad_()}
    model = wrapped(bag)
    model(**batch).square().sum().backward()
    expected, batch["per_sample_weights"].grad = batch["per_sample_weights"].grad, None

    compressed(model, [{key: value.detach() for key, value in batch.items()}], T)
    model(**batch).square().sum().backward()

    torch.testing.assert_close(batch["per_sample_weights"].grad, expected)
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert not model.bag.codes.weight.grad[PADDING].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bag_of_many_ids_counts_them_all(dtype: torch.dtype) -> None:
    model = wrapped(nn.EmbeddingBag(V, T, mode="sum").to(dtype))
    batch = {"input": torch.arange(999) % V, "offsets": torch.tensor([0])}
    before = model(**batch).float()

    compressed(model, [batch], 1)  # one bag: rank 1 leaves nothing but round-off

    assert {p.dtype for p in model.parameters()} == {dtype}
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(model(**batch).float(), before, rtol=tolerance, atol=tolerance * 33)


def test_batches_without_bags_are_taken() -> None:
    model = wrapped(nn.EmbeddingBag(V, T, mode="mean").double())
    empty = {"input": torch.empty(0, 4, dtype=torch.int64)}

    compressed(model, [empty, {"input": random_ids(20, 4)}], 2)

    assert model(**empty).shape == (0, T)


def test_a_bag_comes_back_from_a_checkpoint(tmp_path: Any) -> None:
    options = {"mode": "sum", "padding_idx": PADDING, "include_last_offset": True, "sparse": True}
    model = wrapped(nn.EmbeddingBag(V, T, **options))
    batch = {"input": random_ids(20), "offsets": torch.tensor([0, 5, 20])}
    plan = compressed(model, [batch], 2)

    save_pretrained(model, str(tmp_path), plan=plan)
    loaded = from_pretrained(str(tmp_path), model=wrapped(nn.EmbeddingBag(V, T, **options)))

    assert torch.equal(loaded(**batch), model(**batch))
    assert loaded.bag.codes.sparse


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (nn.EmbeddingBag(V, T, mode="max"), "has mode='max': a maximum over rows"),
        (nn.EmbeddingBag(V, T, max_norm=1.0), "has max_norm=1.0: its rows change"),
        (nn.Embedding(V, T, max_norm=1.0), "has max_norm=1.0: its rows change"),
    ],
    ids=["maximum", "norm of a bag", "norm"],
)
def test_tables_that_are_no_sums_of_fixed_rows_are_refused(table: nn.Module, why: str) -> None:
    model = nn.Sequential(table)

    with pytest.raises(OptionError, match=why):
        collect_moments(model, [], ["0"])
    with pytest.raises(OptionError, match=why):
        compress_(
            model, plan_ranks({"0": moments_of_sums(random(9, T), torch.ones(9))}, FixedRank(rank=1)), {}
        )


# Moments of weighted sums ------------------------------------------------------------------------


def test_sums_of_weight_one_have_plain_moments() -> None:
    y = random(50, T) + 3

    moments = moments_of_sums(y, torch.ones(50))

    torch.testing.assert_close(moments.mean, y.mean(0))
    torch.testing.assert_close(moments.covariance, y.T.cov(correction=0))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_sums_do_not_depend_on_the_batches(offset: float) -> None:
    W = random(300, seed=1) * 3
    y = torch.outer(W, random(T, seed=2) + offset) + random(300, T, seed=3)
    W[:20], y[:20] = 0, 0  # empty bags
    slope = (W @ y) / W.square().sum()
    residual = y - torch.outer(W, slope)

    for sizes in ([300], [1] * 300, [20, 30, 250]):
        parts = zip(y.split(sizes), W.split(sizes), strict=True)
        merged = Moments.empty(T)
        for part in parts:
            merged = merged.merge(moments_of_sums(*part))
        assert merged.count == 300
        torch.testing.assert_close(merged.mean, slope, rtol=1e-12, atol=0)
        error = (merged.scatter - residual.T @ residual).norm() / (residual.T @ residual).norm()
        assert float(error) <= 1e-8


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_sums_are_refused(broken: float) -> None:
    y, W = random(9, T), torch.ones(9)
    y[3, 2] = broken

    with pytest.raises(ValueError, match="NaN or infinity"):
        moments_of_sums(y, W)
