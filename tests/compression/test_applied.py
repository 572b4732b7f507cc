"""A model knows which plan made it, and is saved with no other."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afm_dist
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.rounding.config import rounding
from afm_dist.models import build_model
from tests.small_dataset import FIELDS

X = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
HYPER = {"embedding_dim": 4, "hidden": [16, 16, 5], "dropout": 0.0}


def new_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 12))


def entry(name: str, rank: int = 3, **others: Any) -> Plan:
    return Plan(entries=(PlanEntry(name, LowRank(factors="afm", rank=rank, **others)),))


def two_rounds(model: nn.Module) -> tuple[Plan, Plan]:
    plans = entry("2", activation="shifted"), entry("0")
    for plan in plans:
        moments = afm_dist.collect_moments(model, [X], [plan.entries[0].name])
        afm_dist.compress_(model, plan, moments)
    return plans


def test_without_a_plan_it_is_the_model_s_own(tmp_path: Path) -> None:
    model = new_model()
    first, second = two_rounds(model)
    assert afm_dist.applied_plan(model) == first + second

    afm_dist.save_pretrained(model, str(tmp_path))
    loaded = afm_dist.from_pretrained(str(tmp_path), model=new_model(1))

    assert torch.equal(loaded(X), model(X))
    assert load_config(str(tmp_path)).plan == first + second


def test_a_third_round_on_a_loaded_model_adds_to_what_it_knows(tmp_path: Path) -> None:
    model = new_model()
    first, second = two_rounds(model)
    afm_dist.save_pretrained(model, str(tmp_path / "two"), plan=first + second)
    loaded = copy.deepcopy(afm_dist.from_pretrained(str(tmp_path / "two"), model=new_model(1)))
    moments = afm_dist.collect_moments(loaded, [X], ["4"])
    afm_dist.compress_(loaded, entry("4"), moments)

    afm_dist.save_pretrained(loaded, str(tmp_path / "three"))

    assert load_config(str(tmp_path / "three")).plan == first + second + entry("4")
    again = afm_dist.from_pretrained(str(tmp_path / "three"), model=new_model(1))
    assert torch.equal(again(X), loaded(X))


WRONG: dict[str, tuple[Plan, str]] = {
    "second alone": (entry("0"), r"does not say of 2\b"),
    "first alone": (entry("2", activation="shifted"), r"does not say of 0\b"),
    "none": (Plan(), r"does not say of 2, 0\b"),
    "one too many": (entry("2", activation="shifted") + entry("0") + entry("4"), r"says of 4, which is not"),
    "of no module": (entry("2", activation="shifted") + entry("0") + entry("7"), r"says of 7, which is not"),
    "another rank": (entry("2", activation="shifted") + entry("0", 4), r"0 is of rank 3 \(the plan: 4\)"),
    "another activation": (entry("2") + entry("0"), r"2 is of activation shifted \(the plan: none\)"),
    "another order": (entry("0") + entry("2", activation="shifted"), r"the order was 2, 0"),
    "rounded": (
        entry("2", activation="shifted") + entry("0") + rounding("3"),
        r"says of 3, which is not compressed",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("as_config", [False, True])
def test_another_plan_is_refused_before_anything_is_written(
    wrong: str, as_config: bool, tmp_path: Path
) -> None:
    model = new_model()
    two_rounds(model)
    plan, message = WRONG[wrong]
    given: Any = {"plan": plan}
    if as_config:
        given = {"config": ModelConfig(hyper_parameters={}, plan=plan)}

    with pytest.raises(OptionError, match=message):
        afm_dist.save_pretrained(model, str(tmp_path / "checkpoint"), **given)

    assert not (tmp_path / "checkpoint").exists()


def test_a_plan_for_an_uncompressed_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="says of 0, which is not compressed"):
        afm_dist.save_pretrained(new_model(), str(tmp_path / "checkpoint"), plan=entry("0"))

    assert not (tmp_path / "checkpoint").exists()


def test_a_refused_compression_is_not_remembered(tmp_path: Path) -> None:
    model = new_model()
    moments = afm_dist.collect_moments(model, [X], ["0"])
    with pytest.raises(OptionError, match="no moments of 2"):
        afm_dist.compress_(model, entry("0") + entry("2"), moments)

    assert afm_dist.applied_plan(model) == Plan()


def test_folded_tables_and_rounded_rows_are_remembered(tmp_path: Path) -> None:
    plan = entry("embedding", 2, folded_into="mlp.0") + rounding("embedding")
    model = restructure_(build_model("deepfm", FIELDS, HYPER), plan)
    config = ModelConfig(architecture="deepfm", hyper_parameters=HYPER, fields=FIELDS)

    assert afm_dist.applied_plan(model) == plan
    with pytest.raises(OptionError, match="does not say of embedding"):
        afm_dist.save_pretrained(model, str(tmp_path / "checkpoint"), config)
    afm_dist.save_pretrained(model, str(tmp_path / "checkpoint"), replace(config, plan=plan))
    loaded = afm_dist.from_pretrained(str(tmp_path / "checkpoint"))
    assert afm_dist.applied_plan(loaded) == plan
    with pytest.raises(
        OptionError, match=r"embedding is compressed by afm, then rounding \(the plan: by afm\)"
    ):
        afm_dist.save_pretrained(
            model, str(tmp_path / "other"), replace(config, plan=Plan(entries=plan.entries[:1]))
        )


class Towers(nn.Module):
    """Two names for one tower."""

    def __init__(self) -> None:
        super().__init__()
        self.left = self.right = new_model()

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


def test_a_whole_names_the_parts_that_were_compressed_in_it(tmp_path: Path) -> None:
    model = Towers()
    two_rounds(model.left)

    afm_dist.save_pretrained(model, str(tmp_path))

    names = [item.name for item in load_config(str(tmp_path)).plan.entries]
    assert names == ["left.2", "left.0"]
    assert torch.equal(afm_dist.from_pretrained(str(tmp_path), model=Towers())(X), model(X))


def test_either_name_of_a_module_is_right(tmp_path: Path) -> None:
    model = Towers()
    moments = afm_dist.collect_moments(model, [X], ["left.0"])
    afm_dist.compress_(model, entry("left.0"), moments)

    afm_dist.save_pretrained(model, str(tmp_path), plan=entry("right.0"))

    assert torch.equal(afm_dist.from_pretrained(str(tmp_path), model=Towers())(X), model(X))
