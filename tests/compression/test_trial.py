"""What a model does with a module besides calling it: weights that are read, types that are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import afm_dist
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.layers import LowRankLinear, ProjectedEmbedding, ProjectedEmbeddingBag
from tests.small_dataset import FIELDS, write_dataset

X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IDS = torch.randint(0, 20, (50, 3), generator=torch.Generator().manual_seed(0))


def plan_of(name: str, rank: int, **others: Any) -> Plan:
    return Plan(entries=(PlanEntry(name, LowRank(factors="afm", rank=rank, **others)),))


class Scoring(nn.Module):
    """Scores all items, by the table that it looks them up in."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(20, 8, padding_idx=padding_idx)
        self.layer = nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        table = self.items
        assert (table.num_embeddings, table.embedding_dim, table.sparse) == (20, 8, False)
        assert table.max_norm is None
        hidden = self.layer(self.items(ids).mean(1)) + functional.linear(
            self.items(ids)[:, 0], self.layer.weight, self.layer.bias
        )
        return hidden @ self.items.weight.T + functional.embedding(ids, table.weight, table.padding_idx).sum()


@pytest.mark.parametrize("name", ["items", "layer"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_a_weight_that_is_read_is_multiplied_out(name: str, padding_idx: int | None, tmp_path: Path) -> None:
    model = Scoring(padding_idx).double()
    expected, weight = model(IDS), model.get_submodule(name).weight.detach().clone()
    moments = afm_dist.collect_moments(model, [IDS], [name])

    afm_dist.compress_(model, plan_of(name, 8), moments)

    torch.testing.assert_close(model(IDS), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.get_submodule(name).weight, weight, rtol=0, atol=1e-12)
    afm_dist.save_pretrained(model, str(tmp_path))
    loaded = afm_dist.from_pretrained(str(tmp_path), model=Scoring(padding_idx).double())
    torch.testing.assert_close(loaded(IDS), model(IDS), rtol=0, atol=1e-12)


def test_gradients_reach_the_factors_through_the_weight() -> None:
    layer = LowRankLinear(5, 4, 2, "none").double()
    table = ProjectedEmbedding(7, 4, 2, padding_idx=1).double()
    bag = ProjectedEmbeddingBag(7, 4, 2, mode="sum").double()
    with torch.no_grad():
        table.padding.normal_()

    for module, call in (
        (layer, lambda: layer(torch.eye(5, dtype=torch.float64)) - layer.bias),
        (table, lambda: table(torch.arange(7)).T),
        (bag, lambda: bag(torch.arange(7)[:, None]).T),
    ):
        torch.testing.assert_close(module.weight.T, call() if module is layer else call().T.T, rtol=0, atol=0)
        parameters = list(module.parameters())
        scale = torch.randn(module.weight.shape, dtype=torch.float64)
        by_weight = torch.autograd.grad((module.weight * scale).sum(), parameters, allow_unused=True)
        by_call = torch.autograd.grad((call().T * scale).sum(), parameters, allow_unused=True)
        for a, b in zip(by_weight, by_call, strict=True):
            assert (a is None) == (b is None or not b.any())
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["plain", "shifted"])
def test_a_layer_with_a_relu_has_no_weight_to_read(activation: Any) -> None:
    layer = LowRankLinear(5, 4, 2, activation)

    for key in ("weight", "bias"):
        with pytest.raises(AttributeError, match=f"{key}: .*activation='none'"):
            getattr(layer, key)
        assert not hasattr(layer, key)


@pytest.mark.parametrize("activation", ["none", "shifted"])
def test_compressed_modules_can_be_scripted(activation: Any) -> None:
    layer = LowRankLinear(6, 4, 2, activation).double()

    torch.testing.assert_close(torch.jit.script(layer)(X), layer(X))


# What is refused ---------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6, dtype=torch.float64)
        self.kept = [self.layer.weight]
        self.transposed = self.layer.weight.detach().T
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, self.layer(x))


USES: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a list of weights": (lambda net, y: y @ net.kept[0], r"goes on using layer\.weight"),
    "a view of a weight": (lambda net, y: y @ net.transposed, r"goes on using layer\.weight"),
    "its data": (lambda net, y: y + net.kept[0].data.sum(), r"goes on using layer\.weight"),
    "an attribute": (lambda net, y: y + net.layer.reset_parameters.__name__.count("r"), "does not run"),
}


@pytest.mark.parametrize("use", USES)
def test_what_a_replacement_cannot_give_is_refused(use: str) -> None:
    function, message = USES[use]
    model = Net(function)
    before, layer = model(X), model.layer
    moments = afm_dist.collect_moments(model, [X], ["layer"])

    with pytest.raises(OptionError, match=message):
        afm_dist.compress_(model, plan_of("layer", 2), moments)

    assert model.layer is layer
    assert not layer._forward_hooks
    assert torch.equal(model(X), before)


def test_a_weight_behind_a_relu_is_refused_before_anything_changes() -> None:
    model = Scoring().double()
    before = model(IDS)
    moments = afm_dist.collect_moments(model, [IDS], ["layer"])

    with pytest.raises(OptionError, match=r"does not run any more.*activation='none'"):
        afm_dist.compress_(model, plan_of("layer", 2, activation="shifted"), moments)

    assert torch.equal(model(IDS), before)


class Asking(nn.Module):
    """Calls what is a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Tanh()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Linear) else torch.tanh(x)
        return x


def test_a_replacement_that_is_not_called_is_refused() -> None:
    model = Asking().double()
    moments = afm_dist.collect_moments(model, [X], [nn.Linear])

    with pytest.raises(OptionError, match=r"calls layers\.0, but not what takes their place"):
        afm_dist.compress_(model, plan_of("layers.0", 2), moments)

    assert isinstance(model.layers[0], nn.Linear)


def test_moments_that_are_put_together_are_tried() -> None:
    model = Asking().double()
    other = afm_dist.collect_moments(nn.Sequential(nn.Linear(6, 2)).double(), [X], ["0"])
    moments = afm_dist.collect_moments(model, [X], [nn.Linear]) | other

    with pytest.raises(OptionError, match="not what takes their place"):
        afm_dist.compress_(model, plan_of("layers.0", 2), moments)


def test_a_batch_that_no_longer_fits_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(6, 6)).double()
    batch = X.clone()
    moments = afm_dist.collect_moments(model, [batch], ["0"])
    batch.resize_(200, 5)

    afm_dist.compress_(model, plan_of("0", 2), moments)

    assert isinstance(model[0], LowRankLinear)
    assert "is not tried" in " ".join(capsys.readouterr().err.split())


class OnRows(nn.Module):
    """Of a dataset's batches; asks for the type of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(FIELDS[0].cardinality, 6)
        self.layers = Asking()

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        return self.layers(self.table(ids[:, 0]))


def test_a_pass_over_a_dataset_knows_where_to_read_rows(local_ray: None, tmp_path: Path) -> None:
    dataset: Manifest = write_dataset(tmp_path)
    model = OnRows()
    moments = afm_dist.collect_moments(model, dataset, ["layers.layers.0", "table"])

    with pytest.raises(OptionError, match=r"calls layers\.layers\.0, but not"):
        afm_dist.compress_(model, plan_of("layers.layers.0", 2), moments)
    afm_dist.compress_(model, plan_of("table", 2), moments)


def test_a_structure_is_not_tried() -> None:
    assert isinstance(restructure_(Asking(), plan_of("layers.0", 2)).layers[0], LowRankLinear)
