"""A type of module that this library does not know: one handler, one registration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afm_dist
from afm_dist.compression import registry
from afm_dist.compression.factorize import eigendecompose, principal, projected_table
from afm_dist.compression.plan import PlanEntry
from afm_dist.compression.ranks import field_key
from afm_dist.statistics.moments import Moments


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


class StackedHandler(afm_dist.Handler[Stacked]):
    makes = (ProjectedStack,)

    def widths(self, name: str, module: Stacked) -> Mapping[str, int]:
        return {field_key(name, str(i)): module.weight.shape[2] for i in range(len(module.weight))}

    def observe(
        self, name: str, module: Stacked, output: Tensor, ids: Tensor
    ) -> Iterator[afm_dist.Observation]:
        for i in range(ids.shape[1]):
            yield afm_dist.Observation(field_key(name, str(i)), output[:, i])

    def build(self, module: Stacked, entry: PlanEntry) -> ProjectedStack:
        return ProjectedStack(*module.weight.shape, entry.rank)

    def fill(
        self, new: ProjectedStack, module: Stacked, entry: PlanEntry, moments: Mapping[str, Moments]
    ) -> None:
        for i, expand in enumerate(new.expand):
            spectrum = eigendecompose(moments[field_key(entry.name, str(i))])
            factors = projected_table(module.weight[i], principal(spectrum, entry.rank))
            new.weight[i] = factors.codes
            expand.weight.copy_(factors.projection)
            expand.bias.copy_(factors.bias)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_HANDLERS", dict(registry._HANDLERS))
    afm_dist.register_handler(Stacked, StackedHandler())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("rank", [4, 2])
def test_a_registered_type_is_watched_planned_and_compressed(rank: int) -> None:
    model = nn.Sequential(Stacked(3, 20, 4), nn.Flatten(), nn.Linear(12, 2))
    ids = torch.randint(0, 20, (300, 3), generator=torch.Generator().manual_seed(1))
    before = model[0](ids)

    moments = afm_dist.collect_moments(model, [ids], ["0"])
    plan = afm_dist.plan_ranks(dict(moments), afm_dist.FixedRank(rank=rank))
    afm_dist.compress_(model, plan, moments)

    assert [(entry.name, entry.rank) for entry in plan.entries] == [("0", rank)]
    dropped = sum(torch.linalg.eigvalsh(item.covariance)[: 4 - rank].sum() for item in moments.values())
    error = (model[0](ids) - before).square().sum((1, 2)).mean()
    torch.testing.assert_close(error.double(), torch.as_tensor(dropped), rtol=1e-5, atol=1e-10)


@pytest.mark.usefixtures("registered")
def test_what_a_handler_makes_is_not_compressed_again() -> None:
    model: Any = nn.Sequential(ProjectedStack(3, 20, 4, 2), nn.Linear(4, 4))

    assert registry.compressible(model) == ["1"]
    assert registry.refusal(model, "0.expand.1") == (
        "is a part of 0, which is already compressed; start from the uncompressed model"
    )
