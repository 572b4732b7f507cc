"""Compression of every architecture: exact at full rank, folded only where a fold is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.dataset.manifest import Field
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import Factors, LowRank
from afm_dist.methods.low_rank.ranks import FixedRank, KeptEnergy, plan_ranks
from afm_dist.models.base import CTRModel
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments import Moments
from tests.models.small_models import (
    FIELDS,
    FOLDABLE,
    MODELS,
    NO_NUMBERS,
    SHAPES,
    UNFOLDABLE,
    T,
    inputs,
    logits,
    small_model,
)

TABLE = "embedding"
FIRST = "mlp.0"

every_model = pytest.mark.parametrize("name", MODELS)
every_foldable_model = pytest.mark.parametrize("name", FOLDABLE)
both_schemas = pytest.mark.parametrize("fields", [FIELDS, NO_NUMBERS], ids=["numbers", "no numbers"])
both_methods = pytest.mark.parametrize("method", ["afm", "svd"])


def collect(
    model: CTRModel, targets: Sequence[str], fields: tuple[Field, ...] = FIELDS
) -> dict[str, Moments]:
    return collect_moments(model, [inputs(300, fields)], targets, forward_fn=lambda m, batch: m(*batch))


def compressed_tables(
    name: str,
    rank: int,
    *,
    folded_into: str | None,
    method: Factors = "afm",
    fields: tuple[Field, ...] = FIELDS,
) -> CTRModel:
    model = small_model(name, fields)
    moments = collect(model, [TABLE], fields)
    compress_(
        model,
        plan_ranks(dict(moments), FixedRank(rank=rank), method=method, folded_into=folded_into),
        moments,
    )
    return model


def test_folds_are_declared_where_the_mlp_reads_the_embeddings_themselves() -> None:
    assert set(FOLDABLE) == {"deepfm", "dcn", "dcnv2", "gdcn", "autoint"}
    assert set(UNFOLDABLE) == {"nfm", "fibinet", "dlrm"}


@every_model
@both_methods
def test_full_rank_in_the_linear_layers_reproduces_the_logits(name: str, method: Factors) -> None:
    model = small_model(name)
    expected = logits(model)
    moments = collect(model, model.compressible_linears)

    compress_(model, plan_ranks(dict(moments), FixedRank(rank=8), method=method), moments)

    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@every_model
@both_methods
@both_schemas
def test_full_rank_in_the_tables_reproduces_the_logits(
    name: str, method: Factors, fields: tuple[Field, ...]
) -> None:
    expected = logits(small_model(name, fields), fields=fields)

    model = compressed_tables(name, T, folded_into=None, method=method, fields=fields)

    torch.testing.assert_close(logits(model, fields=fields), expected, rtol=0, atol=1e-5)


@every_foldable_model
@both_methods
@both_schemas
def test_full_rank_in_folded_tables_reproduces_the_logits(
    name: str, method: Factors, fields: tuple[Field, ...]
) -> None:
    expected = logits(small_model(name, fields), fields=fields)

    model = compressed_tables(name, T, folded_into=FIRST, method=method, fields=fields)

    torch.testing.assert_close(logits(model, fields=fields), expected, rtol=0, atol=1e-5)


@every_foldable_model
@pytest.mark.parametrize("rank", range(1, T + 1))
@both_schemas
def test_folded_and_unfolded_tables_agree(name: str, rank: int, fields: tuple[Field, ...]) -> None:
    unfolded = compressed_tables(name, rank, folded_into=None, fields=fields)
    folded = compressed_tables(name, rank, folded_into=FIRST, fields=fields)

    assert folded.mlp[0].in_features < unfolded.mlp[0].in_features or rank == T
    torch.testing.assert_close(
        logits(folded, fields=fields), logits(unfolded, fields=fields), rtol=0, atol=1e-5
    )


@every_model
def test_fields_of_one_id_are_exact_at_any_rank(name: str) -> None:
    # They do not vary, so there is nothing to drop; their only value is their mean.
    fields = tuple(Field(name=field, kind="categorical", cardinality=1) for field in ("a", "b"))
    model = small_model(name, fields)
    expected = logits(model, fields=fields)
    moments = collect(model, [TABLE], fields)

    plan = plan_ranks(dict(moments), KeptEnergy(share=0.99), folded_into=model.folds.get(TABLE))
    compress_(model, plan, moments)

    assert [entry.config.rank for entry in plan.entries] == [1]
    torch.testing.assert_close(logits(model, fields=fields), expected, rtol=0, atol=1e-5)


@every_model
def test_a_low_rank_of_the_tables_changes_the_logits(name: str) -> None:
    # Else the table would not be what the model reads, and the tests above would prove nothing.
    model = compressed_tables(name, 1, folded_into=None)

    assert (logits(model) - logits(small_model(name))).abs().max() > 1e-2


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_folding_is_refused_where_the_mlp_reads_products(name: str) -> None:
    plan = Plan(entries=(PlanEntry(TABLE, LowRank(factors="afm", rank=2, folded_into=FIRST)),))
    model = small_model(name)
    message = f"reads the embeddings directly, which {type(model).__name__} declares for nothing"
    moments = collect(model, [TABLE])

    with pytest.raises(OptionError, match=message):
        restructure_(small_model(name), plan)
    with pytest.raises(OptionError, match=message):
        compress_(model, plan, moments)


def everything(name: str) -> tuple[CTRModel, Plan]:
    """A model with low ranks in all that the paper compresses, folded where that is declared."""
    model = small_model(name)
    moments = collect(model, model.compressible_linears)
    first = plan_ranks(dict(moments), FixedRank(rank=3), activation="shifted")
    compress_(model, first, moments)
    moments = collect(model, [TABLE])
    second = plan_ranks(dict(moments), FixedRank(rank=2), folded_into=model.folds.get(TABLE))
    compress_(model, second, moments)
    return model, first + second


@every_model
def test_the_logits_of_a_base_model_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = small_model(name)
    config = ModelConfig(architecture=name, hyper_parameters=SHAPES[name], fields=FIELDS)

    save_pretrained(model, str(tmp_path), config)

    assert torch.equal(logits(from_pretrained(str(tmp_path))), logits(model))


@every_model
def test_the_logits_of_a_compressed_model_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, plan = everything(name)
    config = ModelConfig(architecture=name, hyper_parameters=SHAPES[name], fields=FIELDS)

    save_pretrained(model, str(tmp_path), replace(config, plan=plan))
    loaded = from_pretrained(str(tmp_path))

    assert torch.equal(logits(loaded), logits(model))
    assert {key: tensor.shape for key, tensor in loaded.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }


@every_model
def test_gradients_reach_every_weight_of_a_compressed_model(name: str) -> None:
    model, _ = everything(name)

    model.train()(*inputs()).square().sum().backward()

    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.to_dense().abs().sum() > 0, key


@every_model
def test_a_compressed_model_takes_a_batch_without_rows(name: str) -> None:
    model, _ = everything(name)

    result = model.train()(*inputs(0))
    result.sum().backward()

    assert result.shape == (0,)
    assert all(parameter.grad is not None for parameter in model.parameters())
