"""Modules that a forward reaches otherwise than by their registered names."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afm_dist
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.references import references
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.statistics.moments import Moments
from tests.models.small_models import MODELS, small_model

Call = Callable[[Tensor], Tensor]
WIDTH = 6
X = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(0))
PLAN = Plan(entries=(PlanEntry("layer", LowRank(factors="svd", rank=2)),))


class Net(nn.Module):
    """A registered layer, which ``attach`` lets the forward reach in another way."""

    def __init__(self, attach: Callable[[Any], Call]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 3)
        self.call = attach(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(x))


@dataclass
class Holder:
    layer: nn.Module


class Slotted:
    __slots__ = ("layer",)


class Calling:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)


def _attribute(name: str, make: Callable[[nn.Module], Any], get: Callable[[Any], Call]) -> Any:
    def attach(net: Any) -> Call:
        object.__setattr__(net, name, make(net.layer))
        return lambda x: get(getattr(net, name))(x)

    return attach


def _slotted(layer: nn.Module) -> Slotted:
    slotted = Slotted()
    slotted.layer = layer
    return slotted


def _closure(net: Any) -> Call:
    layer = net.layer
    return lambda x: layer(x)


def _default(net: Any) -> Call:
    def call(x: Tensor, layer: nn.Module = net.layer) -> Tensor:
        return layer(x)

    return call


def _global(net: Any) -> Call:
    globals()["GLOBAL"] = net.layer
    return lambda x: GLOBAL(x)  # noqa: F821


def _helper(x: Tensor) -> Tensor:
    return HELD["layer"](x)


HELD: dict[str, nn.Module] = {}


def _by_a_helper(net: Any) -> Call:
    HELD["layer"] = net.layer
    return lambda x: _helper(x)


def _unregistered(net: Any) -> Call:
    blocks = [nn.Sequential(net.layer, nn.Tanh())]
    net.__dict__["blocks"] = blocks
    return lambda x: net.blocks[0](x)


def _decorated(net: Any) -> Call:
    layer = net.layer

    @functools.wraps(layer.forward)
    def inner(x: Tensor) -> Tensor:
        return layer(x)

    return functools.lru_cache(maxsize=0)(inner)


WAYS: dict[str, Callable[[Any], Call]] = {
    "attribute": _attribute("alias", lambda layer: layer, lambda held: held),
    "list": _attribute("layers", lambda layer: [layer], lambda held: held[0]),
    "tuple": _attribute("layers", lambda layer: (1, (layer,)), lambda held: held[1][0]),
    "dict": _attribute("layers", lambda layer: {"a": [layer]}, lambda held: held["a"][0]),
    "key": _attribute("layers", lambda layer: {layer: 1}, lambda held: next(iter(held))),
    "set": _attribute("layers", lambda layer: {layer}, lambda held: next(iter(held))),
    "deque": _attribute("layers", lambda layer: deque([layer]), lambda held: held[0]),
    "object": _attribute("holder", Holder, lambda held: held.layer),
    "namespace": _attribute("holder", lambda layer: SimpleNamespace(a=layer), lambda held: held.a),
    "slots": _attribute("holder", _slotted, lambda held: held.layer),
    "weak reference": _attribute("weak", weakref.ref, lambda held: held()),
    "proxy": _attribute("weak", weakref.proxy, lambda held: held.forward),
    "callable": lambda net: Calling(net.layer),
    "closure": _closure,
    "default": _default,
    "global": _global,
    "helper": _by_a_helper,
    "method": lambda net: net.layer.forward,
    "call": lambda net: net.layer.__call__,
    "partial": lambda net: functools.partial(nn.Module.__call__, net.layer),
    "unregistered module": _unregistered,
    "decorated": _decorated,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_would_go_on_with_the_original_is_refused(way: str) -> None:
    model = Net(WAYS[way])
    before = model(X)
    moments = {"layer": Moments.empty(WIDTH)}

    for change in (lambda: compress_(model, PLAN, moments), lambda: restructure_(model, PLAN)):
        with pytest.raises(OptionError, match="layer is also reached by"):
            change()
    with pytest.raises(OptionError, match="layer is also reached by"):
        afm_dist.collect_moments(model, [X], ["layer"])

    assert isinstance(model.layer, nn.Linear)
    assert torch.equal(model(X), before)


def test_a_list_among_the_targets_is_passed_over_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    model = Net(WAYS["list"])

    moments = afm_dist.collect_moments(model, [X], [nn.Linear])

    assert set(moments) == {"last"}
    assert "layer is also reached by layers[0]" in " ".join(capsys.readouterr().err.split())


class Registered(nn.Module):
    """Nothing here holds a layer but by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.towers = nn.ModuleDict({"a": nn.Sequential(nn.Linear(WIDTH, WIDTH))})
        self.both = self.towers
        self.names = ["layer"]
        self.config = {"width": WIDTH, "activation": torch.relu, "kind": nn.Linear}
        self.method = self.run
        self.late = lambda x: self.layer(x)
        self.towers["a"].__dict__["parent"] = self
        self.weak = weakref.ref(self)

    def run(self, x: Tensor) -> Tensor:
        return self.towers["a"](self.late(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.method(x)


def test_what_goes_by_the_names_is_compressed() -> None:
    model = Registered()
    moments = afm_dist.collect_moments(model, [X], [nn.Linear])
    before = model(X)

    compress_(
        model, Plan(entries=tuple(PlanEntry(name, PLAN.entries[0].config) for name in moments)), moments
    )

    assert set(moments) == {"layer", "towers.a.0"}
    assert not torch.allclose(model(X), before)


def test_a_constructor_may_take_a_layer_from_anywhere() -> None:
    layer = nn.Linear(WIDTH, WIDTH)

    class Taking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    assert references(Taking()) == {}


@pytest.mark.parametrize("name", MODELS)
def test_the_models_here_hold_their_modules_by_name(name: str) -> None:
    assert references(small_model(name)) == {}
