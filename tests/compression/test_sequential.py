"""Layers compressed in turn: each by what it gives behind those that are compressed already."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.compression.sequential import compress_sequentially_
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.rounding.config import rounding
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.spectrum import eigendecompose


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(9, 20), nn.Tanh(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(12, 1)).double()


def inputs() -> Tensor:
    return torch.randn(500, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plan(rank: int | None = None) -> Plan:
    widths = {"0": 20, "2": 16, "4": 12}
    entries = [PlanEntry(n, LowRank(factors="afm", rank=rank or width)) for n, width in widths.items()]
    return Plan(entries=tuple(entries))


def collect(model: nn.Module, name: str) -> dict[str, Moments]:
    return collect_moments(model, [inputs()], [name])


def test_each_layer_has_the_moments_behind_the_compressed_ones() -> None:
    model = network()

    moments = compress_sequentially_(model, plan(3), collect)

    assert list(moments) == ["0", "2", "4"]
    with torch.no_grad():
        by_hand = network()
        for index in (0, 2, 4):
            outputs = by_hand[: index + 1](inputs())
            torch.testing.assert_close(moments[str(index)].mean, outputs.mean(0))
            torch.testing.assert_close(moments[str(index)].covariance, outputs.T.cov(correction=0))
            by_hand[index] = model[index]


def test_behind_compressed_layers_the_error_is_that_of_the_dropped_eigenvalues() -> None:
    model, before = network(), network()
    moments = compress_sequentially_(model, plan(3), collect)
    whole = {name: item for name in ("0", "2", "4") for name, item in collect(before, name).items()}
    at_once = compress_(network(), plan(3), whole)
    before[0], at_once[0] = model[0], model[0]

    with torch.no_grad():
        now = before[:3](inputs())  # the layer as it was, behind the compressed one
        errors = [
            float((compressed[:3](inputs()) - now).square().sum(1).mean()) for compressed in (model, at_once)
        ]

    dropped = eigendecompose(moments["2"]).eigenvalues[3:].sum()
    assert errors[0] == pytest.approx(float(dropped), rel=1e-9)
    assert errors[0] < errors[1]


def test_compressing_at_once_with_these_moments_gives_the_same_model() -> None:
    model = network()
    moments = compress_sequentially_(model, plan(3), collect)

    again = compress_(network(), plan(3), moments)

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_rows_are_rounded_when_all_is_compressed() -> None:
    def embedded() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.Linear(5, 1))

    ids, model, before = torch.arange(7), embedded(), embedded()
    plan = Plan(entries=(PlanEntry("1", LowRank(rank=2)),)) + rounding("0")

    moments = compress_sequentially_(model, plan, lambda model, name: collect_moments(model, [ids], [name]))

    again = compress_(embedded(), plan, moments)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(model[0].weight, before[0].weight.bfloat16().float())


def test_full_rank_reproduces_the_outputs() -> None:
    model = network()
    expected = model(inputs())

    compress_sequentially_(model, plan(), collect)

    torch.testing.assert_close(model(inputs()), expected, rtol=0, atol=1e-10)


def test_a_model_of_which_one_layer_cannot_be_compressed_stays_as_it_was() -> None:
    model = network()
    wrong = plan(3) + Plan(entries=(PlanEntry("6", LowRank(factors="afm", rank=2)),))

    with pytest.raises(OptionError, match="rank 2 for 6"):
        compress_sequentially_(model, wrong, collect)

    assert all(isinstance(model[i], nn.Linear) for i in (0, 2, 4, 6))
