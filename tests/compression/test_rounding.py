"""Rows in bfloat16: half the bytes in a checkpoint, the same numbers in memory and from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from afm_dist.checkpoint import ModelConfig, from_pretrained, save_pretrained
from afm_dist.compression.budget import structure_bytes
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.ranks import field_key
from afm_dist.compression.rewrite import compress_
from afm_dist.errors import OptionError
from afm_dist.models.base import CTRModel
from afm_dist.statistics.moments import Moments, moments_of_table
from tests.models.small_models import FIELDS, SHAPES, logits, small_model

TABLE, TERM = "embedding", "linear"
ONE_RANK = PlanEntry(name=TABLE, method="afm", rank=2, folded_into="mlp.0")
OWN_RANKS = ONE_RANK.with_rank({"site": 3, "ad": 0, "hour": 1})

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
    plan = Plan(entries=(entry,)).using(bfloat16=names)
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


@pytest.mark.parametrize("name", ["mlp.0", "nothing"])
def test_what_has_no_rows_is_refused_and_the_model_stays_as_it_was(name: str) -> None:
    model = small_model("deepfm")
    before = logits(model)

    with pytest.raises(OptionError, match=f"names '{name}', which has no rows .* has: embedding, linear"):
        compress_(model, Plan(entries=(ONE_RANK,)).using(bfloat16=[name]), moments(model))

    assert torch.equal(logits(model), before)
