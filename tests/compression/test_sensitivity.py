"""E[ggᵀ] against gradients of a functional copy of the model, and what is left of measuring it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import afm_dist

ROWS, WIDTH = 50, 6


def _half(y: Tensor) -> Tensor:
    y[:, :3].mul_(y.new_tensor(0.5)).add_(1)
    return y


def _half_of_a_copy(y: Tensor) -> Tensor:
    return torch.cat([y[:, :3] * 0.5 + 1, y[:, 3:]], 1)


def _set(y: Tensor) -> Tensor:
    y[::2] = 0.25
    return y


def _set_a_copy(y: Tensor) -> Tensor:
    return torch.where((torch.arange(len(y)) % 2 == 0)[:, None], torch.full_like(y, 0.25), y)


# In place, and what it computes.
IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (nn.ReLU(inplace=True), functional.relu),
    "add": (lambda y: y.add_(1).square(), lambda y: (y + 1).square()),
    "masked": (lambda y: y.masked_fill_(y > 0.3, -1.0) * 2, lambda y: y.masked_fill(y > 0.3, -1.0) * 2),
    "view": (_half, _half_of_a_copy),
    "indexed": (_set, _set_a_copy),
    "dropout": (nn.Dropout(0.5, inplace=True), lambda y: y),
    "exponential": (torch.exp_, torch.exp),
    "transposed": (lambda y: y.T.mul_(3).T, lambda y: y * 3),
}


class Net(nn.Module):
    """A layer that is called twice, with something behind each call."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.last = nn.Linear(WIDTH, 1)
        self.drop = nn.Dropout(0.5)
        self.behind = behind
        with torch.no_grad():
            for tensor in self.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator))
            self.first.weight.sub_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.behind(self.first(x))
        hidden = self.behind(self.first(self.drop(self.norm(hidden))))
        return torch.sigmoid(self.last(hidden)).squeeze(1)


def rows(seed: int = 1) -> Tensor:
    return torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def measured(model: nn.Module, names: tuple[str, ...] = ("first",), **options: Any) -> dict[str, Tensor]:
    options = {"forward": lambda model, batch: model(batch)} | options
    return afm_dist.output_sensitivity(model, [rows(1), rows(2)], list(names), **options)


def expected(net: Net, behind: Callable[[Tensor], Tensor]) -> Tensor:
    """By zeros that are added to the outputs of the first layer, in eval mode and nothing in place."""
    total = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for x in (rows(1), rows(2)):
        zeros = [torch.zeros(ROWS, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        weight, bias = net.first.weight.detach(), net.first.bias.detach()
        hidden = behind(functional.linear(x, weight, bias) + zeros[0])
        norm = net.norm
        hidden = functional.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        hidden = behind(functional.linear(hidden, weight, bias) + zeros[1])
        logits = torch.sigmoid(net.last(hidden))
        for gradient in torch.autograd.grad(logits.sum(), zeros):
            total += gradient.T @ gradient
    return total / (2 * ROWS)


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_the_gradient_of_what_the_module_returned(name: str, training: bool, frozen: bool) -> None:
    in_place, functional_twin = IN_PLACE[name]
    net = Net(in_place).double().train(training)
    G = expected(net, functional_twin)
    net.first.requires_grad_(not frozen)

    torch.testing.assert_close(measured(net)["first"], G, rtol=1e-12, atol=1e-14)


def test_a_frozen_model_is_measured() -> None:
    net = Net(nn.ReLU(inplace=True)).double()
    G = expected(net, functional.relu)

    torch.testing.assert_close(measured(net.requires_grad_(False))["first"], G, rtol=1e-12, atol=1e-14)
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_activations_that_are_computed_again_count_once() -> None:
    net = Net(functional.relu).double()

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.net, x, use_reentrant=False)

    found = measured(Checkpointed(), ("net.first",))["net.first"]

    torch.testing.assert_close(found, expected(net, functional.relu), rtol=1e-12, atol=1e-14)


def test_ids_that_are_overwritten_after_the_lookup_were_looked_up() -> None:
    class Overwriting(nn.Module):
        def __init__(self, overwrite: bool) -> None:
            super().__init__()
            self.items = nn.Embedding(9, 4, padding_idx=0)
            self.overwrite = overwrite

        def forward(self, ids: Tensor) -> Tensor:
            looked_up = self.items(ids)
            if self.overwrite:
                ids.zero_()
            return looked_up.square().sum((1, 2))

    found = []
    for overwrite in (False, True):
        torch.manual_seed(0)
        model = Overwriting(overwrite)
        ids = torch.arange(18).remainder(9).reshape(6, 3)
        found.append(afm_dist.output_sensitivity(model, [ids], ["items"], forward=lambda m, b: m(b))["items"])

    assert torch.equal(found[0], found[1])
    assert float(found[0].trace()) > 0


class Collecting(nn.Module):
    """Keeps, counts and draws whatever it is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(WIDTH, 1)
        self.scale: Tensor | None = None
        self.calls = 0
        self.total = torch.zeros(WIDTH)
        self.kept: dict[str, Any] = {"batches": [], "seen": {0}}
        self.register_buffer("uses", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = self.last.weight.square()
            self.register_buffer("late", torch.ones(3), persistent=False)
        self.calls += 1
        self.uses += 1
        self.kept["batches"].append(x)
        self.kept["seen"].add(self.calls)
        hidden = self.drop(self.norm(self.layer(x))) * self.scale
        self.total.add_(hidden.detach().sum(0))
        return self.last(hidden + torch.randn(WIDTH) * 0.1).squeeze(1)


def collect(model: nn.Module, batches: list[Tensor]) -> None:
    afm_dist.collect_moments(model, batches, ["layer"])


def measure(model: nn.Module, batches: list[Tensor]) -> None:
    afm_dist.output_sensitivity(model, batches, ["layer"], forward=lambda model, batch: model(batch))


@pytest.mark.parametrize("watch", [collect, measure])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("ambient", [torch.enable_grad, torch.inference_mode])
def test_watching_leaves_nothing_behind(watch: Callable[..., None], fails: bool, ambient: Any) -> None:
    torch.manual_seed(0)
    model = Collecting().train()
    model.norm.eval()
    model.last.weight.requires_grad_(False)
    model.layer.weight.grad = torch.ones(WIDTH, WIDTH)
    batches = [torch.randn(20, WIDTH) for _ in range(3)]
    if fails:
        batches.append(torch.randn(20, WIDTH + 1))
    attributes, state = dict(vars(model)), {k: v.clone() for k, v in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    random = torch.get_rng_state()

    with ambient():
        if fails:
            with pytest.raises(RuntimeError):
                watch(model, batches)
        else:
            watch(model, batches)

    assert torch.equal(torch.get_rng_state(), random)
    assert vars(model).keys() == attributes.keys()
    assert all(vars(model)[key] is value for key, value in attributes.items())
    assert model.kept == {"batches": [], "seen": {0}}
    assert torch.equal(model.total, torch.zeros(WIDTH))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.state_dict().keys() == state.keys()
    assert [name for name, _ in model.named_buffers()] == [
        "uses",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.layer.weight.grad, torch.ones(WIDTH, WIDTH))
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"last.weight"}
    assert not any(module._forward_hooks for module in model.modules())
    model(batches[0]).sum().backward()


def test_a_mode_of_ones_own_is_set_and_set_back() -> None:
    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.merged = False
            self.forwards: list[bool] = []

        def train(self, mode: bool = True) -> Merging:
            sign = (not mode) - self.merged
            self.layer.bias.data.add_(sign)
            self.merged = not mode
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            assert self.merged
            return self.layer(x)

    model = Merging()
    before = model.layer.bias.detach().clone()

    afm_dist.collect_moments(model, [torch.randn(9, WIDTH)], ["layer"])

    assert not model.merged
    torch.testing.assert_close(model.layer.bias.detach(), before)


def test_what_a_first_forward_builds_stays() -> None:
    class Built(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.lazy = nn.LazyLinear(3)
            self.built = False

        def forward(self, x: Tensor) -> Tensor:
            if not self.built:
                self.head = nn.Linear(3, 1)
                self.built = True
            return self.head(self.lazy(self.layer(x)))

    model = Built()
    x = torch.randn(9, WIDTH)

    afm_dist.collect_moments(model, [x], ["layer"])

    assert model.built
    assert model(x).shape == (9, 1)


def test_each_forward_draws_other_random_numbers() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.randn_like(x))

    model = Noisy()

    moments = afm_dist.collect_moments(model, [torch.zeros(1, 1)] * 20, ["layer"])

    assert float(moments["layer"].covariance) > 0
