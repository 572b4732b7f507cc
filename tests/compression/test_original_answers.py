"""A model that asks its modules for more than a call gets the original's answer, or is refused first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import afm_dist
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank

V, T, IN, OUT = 30, 8, 6, 10
IDS = torch.randint(1, V, (64, 3), generator=torch.Generator().manual_seed(0))
X = torch.randn(64, IN, generator=torch.Generator().manual_seed(1))


def requested(original: nn.Module, replacement: nn.Module) -> dict[str, tuple[Any, Any]]:
    """The public attributes that torch's constructor gives, and what a replacement answers."""
    names = [key for key in vars(original) if not key.startswith("_") and key != "training"]
    return {key: (getattr(original, key), getattr(replacement, key)) for key in names}


ORIGINALS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(IN, OUT), X),
    "linear without bias": (lambda: nn.Linear(IN, OUT, bias=False), X),
    "embedding": (lambda: nn.Embedding(V, T), IDS),
    "padded": (lambda: nn.Embedding(V, T, padding_idx=-2, sparse=True), IDS),
    "by frequency": (lambda: nn.Embedding(V, T, scale_grad_by_freq=True), IDS),
    "sum": (lambda: nn.EmbeddingBag(V, T, mode="sum", padding_idx=0), IDS),
    "mean": (lambda: nn.EmbeddingBag(V, T, mode="mean", sparse=True), IDS),
}


class Head(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, batch: Tensor) -> Tensor:
        return self.part(batch).flatten(1).sum(1)


def compressed(model: nn.Module, batch: Tensor, rank: int, name: str = "part") -> nn.Module:
    moments = afm_dist.collect_moments(model, [batch], [name])
    return afm_dist.compress_(model, Plan(entries=(PlanEntry(name, LowRank(rank=rank)),)), moments)


@pytest.mark.parametrize("kind", ORIGINALS)
def test_a_replacement_answers_every_attribute_of_the_original(kind: str) -> None:
    make, batch = ORIGINALS[kind]
    torch.manual_seed(0)
    model = Head(make())
    original = model.part

    compressed(model, batch, 2)

    assert model.part is not original
    for name, (expected, found) in requested(original, model.part).items():
        assert found == expected, name
    weight = model.part.weight
    assert (weight.shape, weight.dtype, weight.device, weight.requires_grad) == (
        original.weight.shape,
        original.weight.dtype,
        original.weight.device,
        True,
    )


class Reading(nn.Module):
    """Uses weights, and calls nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(IN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.layer.weight, self.layer.bias).sum(1)


def test_a_layer_whose_weights_are_used_but_that_is_never_called_is_refused() -> None:
    model = Reading()
    layer, before = model.layer, model(X)

    with pytest.raises(OptionError, match=r"moments of layer hold no rows: the module was never called"):
        compressed(model, X, 2, "layer")

    assert model.layer is layer
    assert torch.equal(model(X), before)


def zero_a_row(table: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        table.weight[0].zero_()
    return table(ids)


def clip_its_data(table: Any, ids: Tensor) -> Tensor:
    table.weight.data.clamp_(-2, 2)
    return table(ids)


def normalise(table: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        torch.nn.functional.normalize(table.weight, out=table.weight)
    return table(ids)


class Writing(nn.Module):
    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, T)
        self.head = nn.Linear(T, 1)
        self.use = use

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.use(self.table, ids).sum(1)).squeeze(1)


@pytest.mark.parametrize("use", [zero_a_row, clip_its_data, normalise])
def test_a_model_that_writes_into_a_weight_is_refused_before_anything_changes(
    use: Callable[[Any, Tensor], Tensor],
) -> None:
    model = Writing(use)
    table = model.table

    with pytest.raises(OptionError, match=r"writes into table\.weight .*so nothing was changed"):
        compressed(model, IDS, 2, "table")

    assert model.table is table


class Elsewhere(nn.Module):
    """Writes into a weight that stays, and into what it made of one that goes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, T)
        self.body = nn.Linear(T, T)
        self.scale = nn.Parameter(torch.ones(T))

    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.clamp_(0, 1)
            row = self.body.weight.clone()[0].mul_(2)
        return (self.body(self.table(ids)).relu_() * self.scale * row).sum((1, 2))


@pytest.mark.parametrize("name", ["body", "table"])
def test_writing_elsewhere_is_no_matter(name: str) -> None:
    model = Elsewhere()
    original = model.get_submodule(name)

    compressed(model, IDS, 2, name)

    assert model.get_submodule(name) is not original


def test_a_weight_that_stays_may_be_written_into() -> None:
    model = Writing(zero_a_row)
    moments = afm_dist.collect_moments(model, [IDS], ["table"])

    afm_dist.compress_(model, Plan(entries=(PlanEntry("table", afm_dist.Rounding()),)), moments)

    assert model.table.weight[1].equal(model.table.weight[1].bfloat16().float())
