"""Rows in bfloat16: half the bytes in a checkpoint, the same numbers in memory and from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import afm_dist
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.budget import description_bytes, structure_bytes
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.rounding import rows
from afm_dist.methods.rounding.config import rounding
from afm_dist.models.base import CTRModel
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import Moments, moments_of_table
from tests.models.small_models import FIELDS, SHAPES, logits, small_model

TABLE, TERM = "embedding", "linear"
ONE_RANK = PlanEntry(TABLE, LowRank(factors="afm", rank=2, folded_into="mlp.0"))
OWN_RANKS = PlanEntry(TABLE, ONE_RANK.config.with_rank({"site": 3, "ad": 0, "hour": 1}))

every_plan = pytest.mark.parametrize("entry", [ONE_RANK, OWN_RANKS], ids=["one-rank", "own-ranks"])
every_choice = pytest.mark.parametrize("names", [(TERM,), (TABLE,), (TERM, TABLE)], ids="-".join)


def moments(model: CTRModel) -> Mapping[str, Moments]:
    return {
        field_key(TABLE, name): moments_of_table(
            model.embedding.weight.detach()[model.embedding.rows(i)],
            torch.ones(model.embedding.cardinalities[i], dtype=torch.int64),
        )
        for i, name in enumerate(model.embedding.names)
    }


def compressed(entry: PlanEntry, *names: str) -> tuple[CTRModel, ModelConfig]:
    plan = Plan(entries=(entry,)) + rounding(*names)
    model = small_model("deepfm")
    compress_(model, plan, moments(model))
    return model, ModelConfig(
        architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS, plan=plan
    )


def nearest(values: torch.Tensor) -> NDArray[np.uint32]:
    """Round to nearest, ties to even, the upper 16 bits of a float32: NumPy's account of bfloat16."""
    bits = values.detach().numpy().view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16


def is_row(name: str, names: tuple[str, ...]) -> bool:
    return name.endswith("weight") and name.startswith(names)


@every_plan
@every_choice
def test_rows_are_rounded_to_nearest_and_nothing_else_is(entry: PlanEntry, names: tuple[str, ...]) -> None:
    rounded, _ = compressed(entry, *names)
    whole, _ = compressed(entry)

    before, after = whole.state_dict(), rounded.state_dict()
    assert any(is_row(name, names) for name in after)
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        if is_row(name, names):
            assert (tensor.numpy().view(np.uint32) == nearest(before[name])).all()
            assert not torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, before[name])


@every_plan
@every_choice
def test_a_checkpoint_has_the_numbers_of_the_model_in_fewer_bytes(
    entry: PlanEntry, names: tuple[str, ...], tmp_path: Path
) -> None:
    model, config = compressed(entry, *names)

    save_pretrained(model, str(tmp_path), config)

    assert torch.equal(logits(from_pretrained(str(tmp_path))), logits(model))
    content = (tmp_path / "model.safetensors").read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    stored = {name: item["dtype"] for name, item in json.loads(content[8:head]).items()}
    assert {name for name, dtype in stored.items() if dtype == "BF16"} == {
        name for name in stored if is_row(name, names)
    }
    assert structure_bytes(config, Plan()) > structure_bytes(config, config.plan) == len(content) - head


def test_saving_does_not_round_the_model_that_is_saved(tmp_path: Path) -> None:
    model, config = compressed(ONE_RANK, TABLE)
    with torch.no_grad():
        # As fine-tuning does.
        model.embedding.weight += 1e-4
    before = model.embedding.weight.clone()

    save_pretrained(model, str(tmp_path), config)

    assert torch.equal(model.embedding.weight, before)
    loaded = from_pretrained(str(tmp_path)).embedding.weight
    assert loaded.dtype == torch.float32
    assert (loaded - before).abs().max() <= before.abs().max() * 2**-8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlp.0", "'mlp.0' cannot be rounded: it is a Linear.* has rows: embedding, linear "),
        ("nothing", "no module 'nothing'"),
    ],
)
def test_what_has_no_rows_is_refused_and_the_model_stays_as_it_was(name: str, message: str) -> None:
    model = small_model("deepfm")
    before = logits(model)

    with pytest.raises(OptionError, match=message):
        compress_(model, Plan(entries=(ONE_RANK,)) + rounding(name), moments(model))

    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("ranks", [None, {"site": 0, "ad": 0, "hour": 0}], ids=["as-it-is", "only-means"])
def test_first_order_weights_are_rounded_whatever_becomes_of_the_table(
    ranks: Mapping[str, int] | None, tmp_path: Path
) -> None:
    entries = () if ranks is None else (PlanEntry(TABLE, ONE_RANK.config.with_rank(ranks)),)
    model, whole = small_model("deepfm"), small_model("deepfm")
    compress_(model, plan := Plan(entries=entries) + rounding(TERM, TABLE), moments(model))
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS, plan=plan)

    save_pretrained(model, str(tmp_path), config)

    assert (model.linear.weight.detach().numpy().view(np.uint32) == nearest(whole.linear.weight)).all()
    assert torch.equal(model.linear.numeric, whole.linear.numeric)
    assert torch.equal(logits(from_pretrained(str(tmp_path))), logits(model))


@pytest.mark.parametrize("entries", [(), (ONE_RANK,), (OWN_RANKS,)], ids=["none", "one-rank", "own-ranks"])
@pytest.mark.parametrize("names", [(), (TERM,), (TERM, TABLE)], ids="-".join)
def test_bytes_predicted_are_bytes_written(
    entries: tuple[PlanEntry, ...], names: tuple[str, ...], tmp_path: Path
) -> None:
    model = small_model("deepfm")
    before = ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS)
    save_pretrained(model, str(tmp_path), before)
    plan = Plan(entries=entries) + rounding(*names)
    assert size_on_disk(str(tmp_path)) == structure_bytes(before, Plan()) + description_bytes(before, Plan())
    compress_(model, plan, moments(model))

    save_pretrained(model, str(tmp_path), replace(before, plan=plan))

    assert size_on_disk(str(tmp_path)) == structure_bytes(before, plan) + description_bytes(before, plan)


class Own(nn.Module):
    """A model of torch's own tables, one of them held twice: as ``bag``, and as the weights of ``tied``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tied = nn.Linear(6, 9, bias=False)
        self.emb = nn.Embedding(9, 6)
        self.bag = nn.EmbeddingBag(9, 6)
        self.bag.weight = self.tied.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tied(self.emb(ids) + self.bag(ids[:, None]))


IDS = torch.arange(9)


@pytest.mark.parametrize("names", [("emb",), ("bag",), ("",)], ids=repr)
@pytest.mark.parametrize("rank", [None, 2])
def test_tables_of_a_model_of_one_s_own_are_rounded(
    names: tuple[str, ...], rank: int | None, tmp_path: Path
) -> None:
    entries = () if rank is None else (PlanEntry("emb", LowRank(factors="afm", rank=rank)),)
    plan, model, whole = Plan(entries=entries) + rounding(*names), Own(), Own()
    known = {"emb": moments_of_table(model.emb.weight.detach(), torch.ones(9, dtype=torch.int64))}
    compress_(whole, Plan(entries=entries), known)

    compress_(model, plan, known)
    save_pretrained(model, str(tmp_path), plan=plan)

    codes = "emb.weight" if rank is None else "emb.codes.weight"
    rows = {"emb": {codes}, "bag": {"bag.weight", "tied.weight"}}
    rows[""] = rows["emb"] | rows["bag"]
    before = whole.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name].bfloat16().float()) == (name in rows[names[0]])
    with torch.no_grad():
        assert torch.equal(from_pretrained(str(tmp_path), model=Own())(IDS), model(IDS))
    content = (tmp_path / "model.safetensors").read_bytes()
    stored = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    short = {name for name, item in stored.items() if item.get("dtype") == "BF16"}
    # What is held twice is stored once.
    assert short == rows[names[0]] - {"bag.weight"}


def test_a_type_of_one_s_own_says_what_its_rows_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables, self.scale = nn.Parameter(torch.randn(2, 5, 3)), nn.Parameter(torch.randn(3))

    monkeypatch.setattr(rows, "_ROWS", dict(rows._ROWS))
    model, plan = nn.Sequential(Stacked()), rounding("0")
    with pytest.raises(
        OptionError, match=r"'0' cannot be rounded: it is a Stacked.* has rows: nothing .*register_rows"
    ):
        compress_(model, plan, {})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    afm_dist.register_rows(Stacked, "tables")
    compress_(model, plan, {})

    assert torch.equal(model[0].tables, before["0.tables"].bfloat16().float())
    assert torch.equal(model[0].scale, before["0.scale"])


def test_rows_that_are_made_of_other_tensors_are_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Embedding(5, 3)))

    with pytest.raises(
        OptionError, match=r"'0' cannot be rounded: the weight of a ParametrizedEmbedding is no"
    ):
        compress_(model, rounding("0"), {})
