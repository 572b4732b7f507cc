"""Layers and tables with more outputs than information, by every method: no NaN, no change of logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.compression.sequential import compress_sequentially_
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Field
from afm_dist.methods.low_rank.config import FACTORS, LowRank
from afm_dist.models.deepfm import DeepFM
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.statistics.spectrum import eigendecompose

FIELDS = (
    Field(name="many", kind="categorical", cardinality=40),
    Field(name="one", kind="categorical", cardinality=1),
    Field(name="never", kind="categorical", cardinality=2),
    Field(name="age", kind="numeric"),
)
T, HIDDEN = 5, (24, 20, 16)
ROWS = 900

every_method = pytest.mark.parametrize("method", [*FACTORS, "sequential"])


def rows(count: int = ROWS) -> Batch:
    generator = torch.Generator().manual_seed(1)
    many = torch.randint(0, 40, (count,), generator=generator)
    # The second token of the third field never occurs.
    ids = torch.stack([many, torch.zeros_like(many), torch.zeros_like(many)], 1)
    return Batch(ids, torch.randn(count, 1, generator=generator), torch.zeros(count))


def deepfm() -> DeepFM:
    torch.manual_seed(0)
    model = DeepFM(FIELDS, embedding_dim=T, hidden=HIDDEN)
    with torch.no_grad():
        model.embedding.weight.normal_(0.2, 0.4)
        for layer in (model.mlp[0], model.mlp[3]):
            layer.weight.normal_(0, 0.4)  # so that no direction is nearly without variance
    return model.eval()


def moments_of(model: nn.Module, names: list[str], batch: Batch) -> dict[str, Moments]:
    return collect_moments(model, [batch], names, forward_fn=forward_batch)


def compressed(
    model: nn.Module, method: str, ranks: dict[str, int], batch: Batch, *, activation: str = "none"
) -> nn.Module:
    names = list(ranks)
    factors = "afm" if method == "sequential" else method
    entries = [
        PlanEntry(name, LowRank(factors=factors, rank=rank, activation=activation, kappa=50.0))
        for name, rank in ranks.items()
    ]
    plan = Plan(entries=tuple(entries))
    if method == "sequential":
        compress_sequentially_(model, plan, lambda model, name: moments_of(model, [name], batch))
        return model
    sensitivity = output_sensitivity(model, [batch], names, forward=forward_batch)
    return compress_(model, plan, moments_of(model, names, batch), sensitivity)


def logits(model: nn.Module, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return forward_batch(model, batch)


def constant_outputs(model: DeepFM) -> None:
    """Of 20 outputs 8 do not depend on the input; of the next layer's 16 none does."""
    model.mlp[3].weight[:8] = 0
    model.mlp[6].weight[:] = 0


def dead_units(model: DeepFM) -> None:
    """Of 24 units 17 never fire, so that 20 outputs are made of 7 numbers; of those 15 never fire."""
    model.mlp[0].bias[:17] = -10
    model.mlp[3].bias[:15] = -10
    model.mlp[3].bias[15:] = 1


def duplicated_columns(model: DeepFM) -> None:
    """Of 20 outputs 9 are copies of others, of the 16 behind them 8."""
    for layer, half in ((model.mlp[3], 9), (model.mlp[6], 8)):
        layer.weight[half : 2 * half] = layer.weight[:half]
        layer.bias[half : 2 * half] = layer.bias[:half]


# How many dimensions the outputs of both layers fill.
DEGENERATE: dict[Callable[[DeepFM], None], tuple[int, int]] = {
    constant_outputs: (12, 0),
    dead_units: (7, 5),
    duplicated_columns: (11, 8),
}
degenerate = pytest.mark.parametrize(
    ("spoil", "filled"), DEGENERATE.items(), ids=[spoil.__name__ for spoil in DEGENERATE]
)


def spoiled(spoil: Callable[[DeepFM], None]) -> DeepFM:
    model = deepfm()
    with torch.no_grad():
        spoil(model)
    return model


@degenerate
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_needed_rank_is_how_many_dimensions_the_outputs_fill(
    spoil: Callable[[DeepFM], None], filled: tuple[int, int], dtype: torch.dtype
) -> None:
    batch, model = rows(), spoiled(spoil).to(dtype)
    batch = Batch(batch.ids, batch.numeric.to(dtype), batch.labels)

    moments = moments_of(model, ["mlp.3", "mlp.6"], batch)

    needed = [eigendecompose(moments[name]).needed_rank for name in ("mlp.3", "mlp.6")]
    if dtype == torch.float64:
        assert needed == list(filled)
    else:  # of so few rows the round-off of float32 fills dimensions, too; never fewer than there are
        assert all(a <= b < c for a, b, c in zip(filled, needed, (20, 16), strict=True))


@every_method
@degenerate
@pytest.mark.parametrize("activation", ["none", "shifted"])
@pytest.mark.parametrize("more", [0, 3])
def test_a_rank_of_what_the_outputs_fill_or_more_leaves_the_logits(
    method: str, spoil: Callable[[DeepFM], None], filled: tuple[int, int], activation: str, more: int
) -> None:
    model, batch = spoiled(spoil), rows()
    expected = logits(model, batch)
    if method == "svd" and spoil is dead_units:
        filled = (20, 16)  # what is dead is seen in the data, not in the weights

    ranks = {
        name: min(max(rank + more, 1), width)
        for name, rank, width in zip(("mlp.3", "mlp.6"), filled, (20, 16), strict=True)
    }
    compressed(model, method, ranks, batch, activation=activation)

    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-5)


@every_method
@degenerate
@pytest.mark.parametrize("activation", ["none", "plain", "shifted"])
@pytest.mark.parametrize("rank", [1, 16])
def test_no_rank_gives_nan(
    method: str, spoil: Callable[[DeepFM], None], filled: tuple[int, int], activation: str, rank: int
) -> None:
    model = compressed(spoiled(spoil), method, {"mlp.3": rank, "mlp.6": rank}, rows(), activation=activation)

    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert torch.isfinite(logits(model, rows())).all()


@every_method
@pytest.mark.parametrize("count", [1, 2, 6])
def test_fewer_rows_than_dimensions_leave_the_logits_of_these_rows(method: str, count: int) -> None:
    model, batch = deepfm(), rows(count)
    expected = logits(model, batch)
    rank = 16 if method == "svd" else max(count - 1, 1)

    compressed(model, method, {"mlp.3": max(rank, 20 if method == "svd" else 1), "mlp.6": rank}, batch)

    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-5)
    assert torch.isfinite(logits(model, rows())).all()


@every_method
@pytest.mark.parametrize("rank", [1, 2, T])
def test_fields_of_one_token_come_back_at_any_rank(method: str, rank: int) -> None:
    model, batch = deepfm(), rows()
    before = model.embedding(batch.ids)[1].detach()

    compressed(model, method, {"embedding": rank}, batch)

    after = model.embedding(batch.ids)[1].detach()
    # The singular value decomposition has no bias: of two rows, one of which never occurs, it needs both.
    known = [1, 2] if method != "svd" or rank > 1 else [1]
    torch.testing.assert_close(after[:, known], before[:, known], rtol=0, atol=1e-6)
    assert torch.isfinite(after).all()
    assert torch.isfinite(model.embedding(torch.tensor([[0, 0, 1]]))[1]).all()


def test_the_needed_rank_of_a_field_of_one_token_is_0() -> None:
    moments = moments_of(deepfm(), ["embedding"], rows())

    needed = {name: eigendecompose(item).needed_rank for name, item in moments.items()}

    assert needed == {"embedding[many]": T, "embedding[one]": 0, "embedding[never]": 0}


@every_method
def test_tables_with_duplicated_columns_leave_the_logits_at_the_rank_of_the_others(method: str) -> None:
    model, batch = deepfm(), rows()
    with torch.no_grad():
        model.embedding.weight[:, 3:] = model.embedding.weight[:, :2]
    expected = logits(model, batch)

    compressed(model, method, {"embedding": 3}, batch)

    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-5)


@every_method
def test_a_table_of_zeros_leaves_the_logits(method: str) -> None:
    model, batch = deepfm(), rows()
    with torch.no_grad():
        model.embedding.weight.zero_()
    expected = logits(model, batch)

    compressed(model, method, {"embedding": 2}, batch)

    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-6)
