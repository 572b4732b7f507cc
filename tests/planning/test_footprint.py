from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_dist.dataset.manifest import Field
from afm_dist.models import ARCHITECTURES, build_model
from afm_dist.planning.footprint import Footprint, inference_footprint, training_footprint

FIELDS, NUMBERS = 26, 13
CRITEO = (
    *(Field(name=f"c{i}", kind="categorical", cardinality=1_000_000) for i in range(FIELDS)),
    *(Field(name=f"n{i}", kind="numeric") for i in range(NUMBERS)),
)


class TwoLayers(nn.Module):
    """16 numbers to 8, to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.second = nn.Linear(8, 1)

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        return self.second(self.first(numeric)).squeeze(1)


def on_meta(architecture: str, dim: int = 16) -> nn.Module:
    with torch.device("meta"):
        return build_model(architecture, CRITEO, {"embedding_dim": dim, "hidden": (400, 400, 400)})


def test_two_layers_cost_what_can_be_counted_by_hand() -> None:
    with torch.device("meta"):
        model = TwoLayers()
    assert inference_footprint(model, 1, 16) == Footprint(
        flops=2 * (16 * 8 + 8),
        traffic=4 * (8 + 1),
        alive=4 * (8 + 1),
    )


def test_training_costs_three_times_the_products_and_keeps_the_gradients() -> None:
    with torch.device("meta"):
        model = TwoLayers()
    footprint = training_footprint(model, 1, 16)
    # Nobody asks for the gradient of the numbers: the first layer is multiplied twice, not three times.
    assert footprint.flops == 2 * (2 * 16 * 8 + 3 * 8)
    assert footprint.fixed == pytest.approx(4 * (16 * 8 + 8 + 8 + 1), rel=0.2)


def linear_flops(model: nn.Module) -> int:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return 2 * sum(linear.in_features * linear.out_features for linear in linears)


def test_a_deep_model_is_mostly_its_linear_layers() -> None:
    model = on_meta("deepfm")
    assert inference_footprint(model, FIELDS, NUMBERS).flops == linear_flops(model)


def test_bilinear_products_and_squeezing_are_counted() -> None:
    model = on_meta("fibinet")
    pairs = FIELDS * (FIELDS - 1) // 2
    bilinear = 2 * 2 * pairs * 16 * 16
    assert inference_footprint(model, FIELDS, NUMBERS).flops == linear_flops(model) + bilinear


def test_attention_is_counted_for_every_field() -> None:
    model = on_meta("autoint")
    # Query, key, value and residual of one linear layer, of each field; scores and their use.
    projections = (FIELDS - 1) * 3 * 2 * 16 * 64
    attention = 3 * 2 * 2 * FIELDS * FIELDS * 16
    flops = inference_footprint(model, FIELDS, NUMBERS).flops
    assert flops == linear_flops(model) + projections + attention


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_can_be_counted(architecture: str) -> None:
    model = on_meta(architecture)
    forward = inference_footprint(model, FIELDS, NUMBERS)
    training = training_footprint(model, FIELDS, NUMBERS)
    assert training.flops == pytest.approx(3 * forward.flops, rel=0.02)
    assert training.alive > forward.alive > 4 * FIELDS * 16
    assert training.fixed < 50e6  # the tables' gradients are sparse: a thousand times smaller than a table
