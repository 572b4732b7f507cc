"""A type of module that this library does not know: how it is watched, and how it is compressed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afm_dist
from afm_dist.compression import registry
from afm_dist.methods.low_rank.factorize import principal, projected_table
from afm_dist.statistics import outputs
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.spectrum import eigendecompose


class Stacked(nn.Module):
    """Tables of several fields as one tensor, shape (F, V, T)."""

    def __init__(self, fields: int, rows: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fields, rows, dim, generator=torch.Generator().manual_seed(0)))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, F) -> (B, F, T)."""
        return self.weight[torch.arange(ids.shape[1]), ids]


class ProjectedStack(Stacked):
    """The same with a projection a field."""

    def __init__(self, fields: int, rows: int, dim: int, rank: int) -> None:
        super().__init__(fields, rows, rank)
        self.expand = nn.ModuleList(nn.Linear(rank, dim) for _ in range(fields))

    def forward(self, ids: Tensor) -> Tensor:
        codes = super().forward(ids)
        return torch.stack([expand(codes[:, i]) for i, expand in enumerate(self.expand)], 1)


class StackedOutputs(afm_dist.Outputs[Stacked]):
    def widths(self, name: str, module: Stacked) -> Mapping[str, int]:
        return {field_key(name, str(i)): module.weight.shape[2] for i in range(len(module.weight))}

    def observe(
        self, name: str, module: Stacked, output: Tensor, ids: Tensor
    ) -> Iterator[afm_dist.Observation]:
        for i in range(ids.shape[1]):
            yield afm_dist.Observation(field_key(name, str(i)), output[:, i])


class LowRankOfStacked(afm_dist.Method[afm_dist.LowRank, Stacked]):
    makes = (ProjectedStack,)

    def examples(self, module: Stacked) -> list[afm_dist.LowRank]:
        return [afm_dist.LowRank(rank=2)]

    def build(self, name: str, module: Stacked, config: afm_dist.LowRank) -> ProjectedStack:
        return ProjectedStack(*module.weight.shape, config.rank)

    def fill(
        self,
        new: ProjectedStack,
        name: str,
        module: Stacked,
        config: afm_dist.LowRank,
        known: afm_dist.Statistics,
    ) -> None:
        for i, expand in enumerate(new.expand):
            spectrum = eigendecompose(known[field_key(name, str(i))])
            factors = projected_table(module.weight[i], principal(spectrum, config.rank))
            new.weight[i] = factors.codes
            expand.weight.copy_(factors.projection)
            expand.bias.copy_(factors.bias)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry.registered()))
    monkeypatch.setattr(outputs, "_OUTPUTS", dict(outputs._OUTPUTS))
    afm_dist.register_method(afm_dist.LowRank, Stacked, LowRankOfStacked())
    afm_dist.register_outputs(Stacked, StackedOutputs())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("rank", [4, 2])
def test_a_registered_type_is_watched_planned_and_compressed(rank: int) -> None:
    model = nn.Sequential(Stacked(3, 20, 4), nn.Flatten(), nn.Linear(12, 2))
    ids = torch.randint(0, 20, (300, 3), generator=torch.Generator().manual_seed(1))
    before = model[0](ids)

    moments = afm_dist.collect_moments(model, [ids], ["0"])
    plan = afm_dist.plan_ranks(dict(moments), afm_dist.FixedRank(rank=rank))
    afm_dist.compress_(model, plan, moments)

    assert [(entry.name, entry.config.rank) for entry in plan.entries] == [("0", rank)]
    dropped = sum(torch.linalg.eigvalsh(item.covariance)[: 4 - rank].sum() for item in moments.values())
    error = (model[0](ids) - before).square().sum((1, 2)).mean()
    torch.testing.assert_close(error.double(), torch.as_tensor(dropped), rtol=1e-5, atol=1e-10)


@pytest.mark.usefixtures("registered")
def test_what_a_method_makes_is_not_compressed_again() -> None:
    model: Any = nn.Sequential(ProjectedStack(3, 20, 4, 2), nn.Linear(4, 4))

    assert registry.compressible(model) == ["1"]
    assert registry.refusal(model, "0.expand.1") == (
        "is a part of 0, which is already compressed; start from the uncompressed model"
    )
