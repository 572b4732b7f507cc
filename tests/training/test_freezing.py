from __future__ import annotations

import pytest
from torch import nn

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.layers import LowRankLinear, ProjectedEmbedding
from afm_dist.models import build_model
from afm_dist.training.freezing import factor_weights, freeze_
from afm_dist.training.recipe import Trained
from tests.small_dataset import FIELDS

TABLES = {"embedding.weight", "linear.weight"}
FACTORS = {
    *("mlp.3.first.weight", "mlp.3.first.bias", "mlp.3.second.weight", "mlp.3.second.bias"),
    *("embedding.projection", "embedding.bias"),
}


def deepfm(*, compressed: bool = False, folded: bool = False) -> nn.Module:
    model = build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (16, 8)})
    into = "mlp.0" if folded else None
    entries = (
        PlanEntry("mlp.3", LowRank(factors="afm", rank=2, activation="shifted")),
        PlanEntry("embedding", LowRank(factors="afm", rank=2, folded_into=into)),
    )
    return restructure_(model, Plan(entries=entries)) if compressed else model


def trained(model: nn.Module, which: Trained) -> set[str]:
    freeze_(model, which)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("compressed", [False, True])
def test_all_and_all_but_the_tables(compressed: bool) -> None:
    every = {name for name, _ in deepfm(compressed=compressed).named_parameters()}

    assert trained(deepfm(compressed=compressed), "all") == every
    assert trained(deepfm(compressed=compressed), "dense") == every - TABLES


def test_factors_are_what_compression_made_without_the_narrow_tables() -> None:
    assert trained(deepfm(compressed=True), "factors") == FACTORS


def test_the_layer_that_a_projection_was_folded_into_is_among_them() -> None:
    model = deepfm(compressed=True, folded=True)

    assert trained(model, "factors") == {*FACTORS, "mlp.0.weight", "mlp.0.bias"}


def test_a_first_order_term_that_reads_the_codes_is_among_them() -> None:
    model = build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (16, 8)})
    entry = PlanEntry("embedding", LowRank(factors="afm", rank=2, absorbs="linear"))
    restructure_(model, Plan(entries=(entry,)))

    assert factor_weights(model) == {
        *("embedding.projection", "embedding.bias", "linear.projection", "linear.bias"),
    }


def test_of_an_uncompressed_model_all_dense_weights_are_trained_for_factors() -> None:
    assert factor_weights(deepfm()) == set()
    assert trained(deepfm(), "factors") == trained(deepfm(), "dense")


def test_a_model_may_be_a_compressed_module_itself() -> None:
    assert factor_weights(LowRankLinear(4, 3, 2, "none")) == {"first.weight", "second.weight", "second.bias"}
    assert factor_weights(ProjectedEmbedding(5, 3, 2)) == {"projection", "bias"}


def test_what_was_frozen_stays_frozen() -> None:
    model = deepfm()
    model.mlp[0].weight.requires_grad_(False)

    assert "mlp.0.weight" not in trained(model, "dense")
