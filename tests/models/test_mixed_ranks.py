"""Every architecture with fields of different ranks: exact at full rank, folded, absorbed, and on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.registry import compressible, refusal
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.models.base import CTRModel
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import moments_of_table
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.tables.first_order import joint_rows
from afm_dist.tables.fused import FusedEmbedding
from afm_dist.tables.grouped import GroupedEmbedding
from afm_dist.training.freezing import factor_weights
from afm_dist.training.optimizer import sparse_weights
from tests.models.small_models import FIELDS, FOLDABLE, MODELS, SHAPES, T, inputs, logits, small_model

TABLE, TERM, FIRST = "embedding", "linear", "mlp.0"
MIXED = {"site": 3, "ad": 0, "hour": 1}
NONE = dict.fromkeys(MIXED, 0)

every_model = pytest.mark.parametrize("name", MODELS)


def compressed(model: CTRModel, ranks: Mapping[str, int], **entry: Any) -> Plan:
    """In place, with statistics of some rows."""
    ids, numeric = inputs(300)
    joint = entry.get("absorbs") is not None
    moments = {
        field_key(TABLE, field): moments_of_table(
            joint_rows(model.embedding, model.linear, i)
            if joint
            else model.embedding.weight.detach()[model.embedding.rows(i)],
            torch.bincount(ids[:, i], minlength=model.embedding.cardinalities[i]),
        )
        for i, field in enumerate(model.embedding.names)
    }
    batch = Batch(ids, numeric, torch.zeros(len(ids)))
    sensitivities = output_sensitivity(
        model, [batch], [TABLE], forward=forward_batch, absorbing=[TABLE] if joint else ()
    )
    plan = Plan(entries=(PlanEntry(TABLE, LowRank(**{"rank": 1, **entry}).with_rank(ranks)),))
    compress_(model, plan, moments, sensitivities)
    return plan


def mixed(name: str) -> tuple[CTRModel, Plan]:
    """With all there is: ranks that differ, a fold where it is right, absorbed first-order weights."""
    model = small_model(name)
    return model, compressed(model, MIXED, folded_into=model.folds.get(TABLE), absorbs=TERM)


@every_model
@pytest.mark.parametrize("method", ["afm", "svd", "weighted"])
@pytest.mark.parametrize("fold", [False, True])
def test_a_rank_for_what_each_field_varies_in_reproduces_the_logits(
    name: str, method: str, fold: bool
) -> None:
    model = small_model(name)
    with torch.no_grad():
        model.embedding.weight[model.embedding.rows(1)] = 0.3
        model.embedding.weight[model.embedding.rows(2), 1:] = 0
    expected = logits(model)

    into = model.folds.get(TABLE) if fold else None
    compressed(model, {"site": T, "ad": 0, "hour": 1}, factors=method, folded_into=into)

    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@every_model
def test_the_largest_ranks_with_absorbed_weights_reproduce_the_logits(name: str) -> None:
    model = small_model(name)
    expected = logits(model)

    # Nine ids and four ids, each with its weight.
    compressed(model, {"site": T + 1, "ad": T, "hour": T + 1}, absorbs=TERM)

    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FOLDABLE)
@pytest.mark.parametrize("ranks", [MIXED, NONE, {"site": 2, "ad": 1, "hour": 2}])
@pytest.mark.parametrize("absorbs", [None, TERM])
def test_folded_and_unfolded_tables_agree(name: str, ranks: Mapping[str, int], absorbs: str | None) -> None:
    unfolded, folded = small_model(name), small_model(name)

    compressed(unfolded, ranks, absorbs=absorbs)
    compressed(folded, ranks, absorbs=absorbs, folded_into=FIRST)

    assert folded.mlp[0].in_features == sum(ranks.values()) + 2
    torch.testing.assert_close(logits(folded), logits(unfolded), rtol=0, atol=1e-5)


@every_model
def test_a_field_of_rank_0_is_its_mean(name: str) -> None:
    model = small_model(name)
    ids, numeric = inputs(300)
    rows = model.embedding(ids)[1].detach()[:, 1].double()

    compressed(model, MIXED)

    _, vectors = model.embedding(ids)
    torch.testing.assert_close(vectors[:, 1].double(), rows.mean(0).expand(300, T), rtol=0, atol=1e-6)
    other = ids.clone()
    other[:, 1] = (other[:, 1] + 1) % 4
    assert torch.equal(model.embedding(other)[1], vectors)
    assert not torch.equal(model(other, numeric), model(ids, numeric)), "it keeps its first-order weights"


def test_equal_ranks_by_field_are_the_uniform_table_bit_for_bit() -> None:
    uniform, by_field = small_model("deepfm"), small_model("deepfm")

    compressed(uniform, dict.fromkeys(MIXED, 2))
    entry = PlanEntry(TABLE, LowRank(factors="afm", rank=2, ranks=dict.fromkeys(MIXED, 2)))
    restructure_(by_field, Plan(entries=(entry,)))

    assert type(uniform.embedding) is FusedEmbedding
    assert isinstance(by_field.embedding, GroupedEmbedding)
    by_field.embedding.groups["2"].load_state_dict(uniform.embedding.state_dict())
    assert torch.equal(logits(by_field), logits(uniform))


@every_model
def test_the_logits_come_back_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, plan = mixed(name)
    config = ModelConfig(architecture=name, hyper_parameters=SHAPES[name], fields=FIELDS, plan=plan)

    save_pretrained(model, str(tmp_path), config)
    loaded = from_pretrained(str(tmp_path))

    assert torch.equal(logits(loaded), logits(model))
    assert {key: tensor.shape for key, tensor in loaded.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }


@every_model
def test_gradients_reach_every_weight_and_tables_are_tables(name: str) -> None:
    model, _ = mixed(name)

    model.train()(*inputs()).square().sum().backward()

    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.to_dense().abs().sum() > 0, key
        assert parameter.grad.is_sparse == (key in sparse_weights(model)), key
    assert set(sparse_weights(model)) == {"embedding.groups.1.weight", "embedding.groups.3.weight"}
    dense = {key for key, _ in model.named_parameters() if key.startswith((TABLE, TERM))}
    dense -= {*sparse_weights(model), "linear.numeric"}
    assert dense <= factor_weights(model)
    assert ("mlp.0.weight" in factor_weights(model)) == (name in FOLDABLE)


def test_a_batch_without_rows_is_taken() -> None:
    model, _ = mixed("deepfm")

    assert model.train()(*inputs(0)).shape == (0,)


@pytest.mark.parametrize(("field", "column", "rows"), [("site", 0, 7), ("ad", 1, 4), ("hour", 2, 9)])
@pytest.mark.parametrize("by", [-1, 0])
def test_an_id_outside_its_field_is_named_whatever_the_rank(
    field: str, column: int, rows: int, by: int
) -> None:
    model, _ = mixed("deepfm")
    ids, numeric = inputs(5)
    ids[3, column] = wrong = -1 if by else rows

    with pytest.raises(
        ValueError, match=f"id {wrong} in row 3 of field '{field}' lies outside its table of {rows}"
    ):
        model(ids, numeric)
    with pytest.raises(ValueError, match=r"ids of shape \(5, 2\): expected \(B, 3\), a column a field"):
        model(ids[:, :2], numeric)


def test_it_is_not_compressed_again() -> None:
    model, plan = mixed("deepfm")

    assert refusal(model, TABLE) == "is already compressed; start from the uncompressed model"
    assert not [name for name in compressible(model) if name.startswith(TABLE)]
    with pytest.raises(OptionError, match="embedding is already compressed"):
        restructure_(model, plan)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"site": 1, "ad": 2}, "needs a rank for its field 'hour'"),
        ({**MIXED, "day": 1}, "has no field 'day'; its fields: site, ad, hour"),
        ({**MIXED, "ad": T + 1}, "rank 5 for embedding, field 'ad': larger than the table's 4"),
    ],
)
def test_ranks_of_other_fields_are_refused(ranks: dict[str, int], message: str) -> None:
    entry = PlanEntry(TABLE, LowRank(factors="afm", rank=max(ranks.values()), ranks=ranks))

    with pytest.raises(OptionError, match=message):
        restructure_(small_model("deepfm"), Plan(entries=(entry,)))


def test_a_module_without_fields_refuses_ranks_by_field() -> None:
    entry = PlanEntry("mlp.3", LowRank(factors="afm", rank=2, ranks={"site": 2, "ad": 1}))

    with pytest.raises(OptionError, match=r"mlp\.3 has no fields that could have ranks of their own"):
        restructure_(small_model("deepfm"), Plan(entries=(entry,)))


def test_what_is_stored_is_what_the_ranks_cost() -> None:
    model, _ = mixed("deepfm")

    stored = sum(
        tensor.numel() for key, tensor in model.state_dict().items() if key.startswith((TABLE, TERM))
    )

    codes, projections, biases = 7 * 3 + 9 * 1, (3 + 1) * (T + 1), 3 * (T + 1)
    assert stored == codes + projections + biases + 2
