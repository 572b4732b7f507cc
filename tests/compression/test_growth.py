"""A plan makes no module larger, and says what it leaves alone."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import afm_dist
from afm_dist.checkpoint.pretrained import count_parameters
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.errors import DataError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.models.deepfm import DeepFM
from afm_dist.statistics.spectrum import eigendecompose
from tests.small_dataset import FIELDS

X = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 1)
    )


def size(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@settings(max_examples=30, deadline=None)
@given(
    policy=st.one_of(
        st.integers(1, 70).map(lambda rank: afm_dist.FixedRank(rank=rank)),
        st.floats(0.01, 1).map(lambda share: afm_dist.KeptEnergy(share=share)),
    ),
    activation=st.sampled_from(["none", "plain", "shifted"]),
)
def test_each_entry_makes_its_module_smaller_and_what_is_left_alone_would_grow(
    policy: Any, activation: Any
) -> None:
    model = mlp()
    moments = afm_dist.collect_moments(model, [X], [nn.Linear])
    with warnings.catch_warnings(record=True) as printed:
        warnings.simplefilter("always")
        plan = afm_dist.plan_ranks(moments, policy, activation=activation)

    assert set(plan.modules) | set(plan.left_alone) == {"0", "2", "4"}
    assert bool(plan.left_alone) == any("left as they are" in str(item.message) for item in printed)
    for name, module in model.named_children():
        if name not in moments:
            continue
        if name in plan.left_alone:
            rank = policy.rank if isinstance(policy, afm_dist.FixedRank) else None
            rank = rank or policy.choose(name, eigendecompose(moments[name]))
            entry = PlanEntry(
                name, LowRank(factors="afm", rank=min(rank, module.out_features), activation=activation)
            )
        else:
            entry = next(entry for entry in plan.entries if entry.name == name)
        changed = copy.deepcopy(model)
        with warnings.catch_warnings(record=True) as printed:
            warnings.simplefilter("always")
            afm_dist.compress_(changed, Plan(entries=(entry,)), moments)
        assert (size(changed) < size(model)) == (name in plan.modules)
        assert (size(changed) > size(model)) == any("larger" in str(item.message) for item in printed)


def test_heads_and_gates_are_left_alone_by_type_and_by_name(tmp_path: Path) -> None:
    model = mlp()
    before = count_parameters(model)

    for targets in ([nn.Linear], ["0", "2", "4"]):
        moments = afm_dist.collect_moments(model, [X], targets)
        with pytest.warns(UserWarning, match=r"left as they are.*4 \(rank 4 of 1 outputs\)"):
            plan = afm_dist.plan_ranks(moments, afm_dist.FixedRank(rank=4))
        assert plan.modules == ["0", "2"]
        assert set(plan.left_alone) == {"4"}

    afm_dist.compress_(model, plan, moments)
    afm_dist.save_pretrained(model, str(tmp_path), plan=plan)
    assert count_parameters(model) < before
    assert torch.equal(afm_dist.from_pretrained(str(tmp_path), model=mlp())(X), model(X))


@pytest.mark.parametrize("rank", range(1, 5))
@pytest.mark.parametrize("folded_into", [None, "mlp.0"])
def test_of_a_table_that_is_folded_the_reader_counts_too(rank: int, folded_into: str | None) -> None:
    torch.manual_seed(0)
    model = DeepFM(FIELDS, embedding_dim=4, hidden=(12, 10, 8)).eval()
    ids = torch.stack([torch.randint(0, f.cardinality, (300,)) for f in FIELDS[:2]], 1)
    batch = ids, torch.randn(300, 1)
    moments = afm_dist.collect_moments(model, [batch], ["embedding"], forward_fn=lambda m, b: m(*b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = afm_dist.plan_ranks(moments, afm_dist.FixedRank(rank=rank), folded_into=folded_into)
        entry = PlanEntry("embedding", LowRank(factors="afm", rank=rank, folded_into=folded_into))
        changed = afm_dist.compress_(copy.deepcopy(model), Plan(entries=(entry,)), moments)

    assert (size(changed) < size(model)) == bool(plan.entries)


@pytest.mark.parametrize(("rows", "few"), [(1, True), (5, True), (16, True), (17, True), (30, False)])
def test_rows_that_limit_the_rank_are_told(rows: int, few: bool) -> None:
    model = nn.Sequential(nn.Linear(16, 64)).double()
    moments = afm_dist.collect_moments(model, [X[:rows].double()], ["0"])

    with warnings.catch_warnings(record=True) as printed:
        warnings.simplefilter("always")
        afm_dist.plan_ranks(moments, afm_dist.KeptEnergy(share=0.999))

    assert any(f"0 ({rows} rows of 64 outputs)" in str(item.message) for item in printed) == few


def test_moments_that_are_put_together_know_all_shapes() -> None:
    model = mlp()
    both = afm_dist.collect_moments(model, [X], ["0"]) | afm_dist.collect_moments(model, [X], ["4"])

    with pytest.warns(UserWarning, match="left as they are"):
        plan = afm_dist.plan_ranks(both, afm_dist.KeptEnergy(share=1.0))

    assert set(plan.left_alone) == {"0", "4"}


def test_what_was_left_alone_is_no_part_of_a_plan_s_file(tmp_path: Path) -> None:
    plan = Plan(left_alone={"head": "narrow"})

    assert plan == Plan()
    assert "left_alone" not in plan.to_json()
    assert (plan + Plan(left_alone={"gate": "too"})).left_alone == {"head": "narrow", "gate": "too"}
    with pytest.raises(DataError, match="left_alone"):
        Plan.from_json({**plan.to_json(), "left_alone": {}})
