from __future__ import annotations

import pytest
import torch

from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.ranks import FixedRank, GivenRanks, KeptEnergy, plan_ranks
from afm_dist.statistics.keys import field_key, field_name, module_key, module_name
from afm_dist.statistics.moments import Moments


def with_variances(*variances: float) -> Moments:
    scatter = torch.diag(torch.tensor(variances, dtype=torch.float64)) * 10
    return Moments(count=10, mean=torch.ones(len(variances), dtype=torch.float64), scatter=scatter)


MOMENTS = {"mlp.3": with_variances(1.0, 90.0, 9.0), "mlp.6": with_variances(50.0, 50.0)}


def test_a_fixed_rank_is_the_same_everywhere() -> None:
    plan = plan_ranks(MOMENTS, FixedRank(rank=2), activation="shifted", kappa=3.0)

    assert [(entry.name, entry.config.rank) for entry in plan.entries] == [("mlp.3", 2), ("mlp.6", 2)]
    assert {
        (entry.config.factors, entry.config.activation, entry.config.kappa) for entry in plan.entries
    } == {("afm", "shifted", 3.0)}


@pytest.mark.parametrize(("share", "ranks"), [(0.5, [1, 1]), (0.9, [1, 2]), (0.99, [2, 2]), (1.0, [3, 2])])
def test_kept_energy_follows_each_spectrum(share: float, ranks: list[int]) -> None:
    plan = plan_ranks(MOMENTS, KeptEnergy(share=share))

    assert [entry.config.rank for entry in plan.entries] == ranks


def test_the_field_that_asks_for_most_decides_for_a_fused_table() -> None:
    moments = {
        field_key("embedding", "site"): with_variances(99.0, 0.5, 0.5),
        field_key("embedding", "ad"): with_variances(40.0, 30.0, 30.0),
        field_key("embedding", "hour"): with_variances(60.0, 39.5, 0.5),
    }

    plan = plan_ranks(moments, KeptEnergy(share=0.99), folded_into="mlp.0")

    assert [
        (entry.name, entry.config.rank, entry.config.ranks, entry.config.folded_into)
        for entry in plan.entries
    ] == [("embedding", 3, None, "mlp.0")]


def test_given_ranks_by_field_are_those_of_the_plan() -> None:
    moments = {field_key("embedding", field): with_variances(1.0, 1.0) for field in ("site", "ad")}
    ranks = {"site": 0, "ad": 2}

    plan = plan_ranks(moments, GivenRanks(ranks={"embedding": ranks}))

    assert [entry.config.ranks for entry in plan.entries] == [ranks]
    with pytest.raises(OptionError, match=r"no rank is given for embedding\[ad\]; there are some for site"):
        plan_ranks(moments, GivenRanks(ranks={"embedding": {"site": 1}}))


@pytest.mark.parametrize("module", ["tower.embedding", "tables.x[0]", "a]b", "[", "\\", "\\[", "a\\\nb[["])
@pytest.mark.parametrize("field", ["site", "a[b]", "[x]", "x y", "\\"])
def test_keys_lead_back_to_their_module(module: str, field: str) -> None:
    assert module_name(field_key(module, field)) == module
    assert module_name(module_key(module)) == module
    assert field_name(field_key(module, field)) == field
    assert field_name(module_key(module)) is None
    assert module_key(module) != field_key(module.partition("[")[0], field)


def test_names_without_brackets_are_their_own_keys() -> None:
    assert module_key("mlp.3") == "mlp.3"
    assert field_key("embedding", "site") == "embedding[site]"


def test_a_fixed_rank_below_1_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"rank 0 for mlp\.6: must lie in 1\.\.2"):
        plan_ranks({"mlp.6": MOMENTS["mlp.6"]}, FixedRank(rank=0))


def test_a_layer_narrower_than_the_rank_is_left_alone() -> None:
    with pytest.warns(UserWarning, match=r"left as they are.*: mlp\.6 \(rank 3 of 2 outputs\)"):
        plan = plan_ranks(MOMENTS, FixedRank(rank=3))

    assert plan.modules == ["mlp.3"]
    assert set(plan.left_alone) == {"mlp.6"}


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, 99.0, float("nan")])
def test_an_energy_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(OptionError, match="energy"):
        KeptEnergy(share=share)


def test_moments_of_no_rows_are_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"mlp\.9"):
        plan_ranks({"mlp.9": Moments.empty(4)}, FixedRank(rank=1))
