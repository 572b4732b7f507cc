"""Every architecture with first-order weights from the codes: at full rank, folded or not, and on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Field
from afm_dist.methods.low_rank.config import Factors, LowRank
from afm_dist.models.base import CTRModel
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import moments_of_table
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.tables.first_order import joint_rows
from tests.models.small_models import (
    FIELDS,
    FOLDABLE,
    MODELS,
    NO_NUMBERS,
    SHAPES,
    T,
    inputs,
    logits,
    small_model,
)

TABLE, TERM, FIRST = "embedding", "linear", "mlp.0"

every_model = pytest.mark.parametrize("name", MODELS)
every_foldable_model = pytest.mark.parametrize("name", FOLDABLE)
both_schemas = pytest.mark.parametrize("fields", [FIELDS, NO_NUMBERS], ids=["numbers", "no numbers"])


def absorbed(
    name: str,
    rank: int,
    *,
    method: Factors = "afm",
    folded_into: str | None = None,
    fields: tuple[Field, ...] = FIELDS,
) -> tuple[CTRModel, Plan]:
    model = small_model(name, fields)
    ids, numeric = inputs(300, fields)
    moments = {
        field_key(TABLE, field): moments_of_table(
            joint_rows(model.embedding, model.linear, i),
            torch.bincount(ids[:, i], minlength=model.embedding.cardinalities[i]),
        )
        for i, field in enumerate(model.embedding.names)
    }
    batch = Batch(ids, numeric, torch.zeros(len(ids)))
    sensitivities = output_sensitivity(model, [batch], [TABLE], forward=forward_batch, absorbing=[TABLE])
    entry = PlanEntry(TABLE, LowRank(factors=method, rank=rank, folded_into=folded_into, absorbs=TERM))
    plan = Plan(entries=(entry,))
    compress_(model, plan, moments, sensitivities)
    return model, plan


@every_model
@pytest.mark.parametrize("method", ["afm", "svd", "weighted"])
@both_schemas
def test_full_rank_reproduces_the_logits(name: str, method: Factors, fields: tuple[Field, ...]) -> None:
    model, _ = absorbed(name, T + 1, method=method, fields=fields)

    expected = logits(small_model(name, fields), fields=fields)
    torch.testing.assert_close(logits(model, fields=fields), expected, rtol=0, atol=1e-5)


@every_foldable_model
@pytest.mark.parametrize("rank", range(1, T + 2))
@both_schemas
def test_folded_and_unfolded_tables_agree(name: str, rank: int, fields: tuple[Field, ...]) -> None:
    unfolded, _ = absorbed(name, rank, fields=fields)
    folded, _ = absorbed(name, rank, folded_into=FIRST, fields=fields)

    torch.testing.assert_close(
        logits(folded, fields=fields), logits(unfolded, fields=fields), rtol=0, atol=1e-5
    )


@every_model
def test_fields_of_one_id_are_exact_at_rank_1(name: str) -> None:
    fields = tuple(Field(name=field, kind="categorical", cardinality=1) for field in ("a", "b"))

    model, _ = absorbed(name, 1, fields=fields)

    expected = logits(small_model(name, fields), fields=fields)
    torch.testing.assert_close(logits(model, fields=fields), expected, rtol=0, atol=1e-5)


@every_model
def test_the_logits_come_back_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, plan = absorbed(name, 2, folded_into=small_model(name).folds.get(TABLE))
    config = ModelConfig(architecture=name, hyper_parameters=SHAPES[name], fields=FIELDS)

    save_pretrained(model, str(tmp_path), replace(config, plan=plan))
    loaded = from_pretrained(str(tmp_path))

    assert torch.equal(logits(loaded), logits(model))
    assert {key: tensor.shape for key, tensor in loaded.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }


@every_model
def test_gradients_reach_every_weight(name: str) -> None:
    model, _ = absorbed(name, 2, folded_into=small_model(name).folds.get(TABLE))

    model.train()(*inputs()).square().sum().backward()

    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.to_dense().abs().sum() > 0, key


@every_model
def test_a_batch_without_rows_is_taken(name: str) -> None:
    model, _ = absorbed(name, 2)

    assert model.train()(*inputs(0)).shape == (0,)


@every_model
def test_uncompressed_models_have_the_tensors_they_had(name: str) -> None:
    model = small_model(name)

    assert {key for key in model.state_dict() if key.startswith((TABLE, TERM))} == {
        *("embedding.weight", "linear.weight", "linear.numeric"),
    }
