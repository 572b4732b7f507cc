from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_dist.training.averaging import WeightAverage


def averaged(model: nn.Linear, weights: Tensor) -> WeightAverage:
    """The average over a model that took these weights one after the other, shape (states, 2, 3)."""
    average = WeightAverage(model)
    for weight in weights:
        with torch.no_grad():
            model.weight.copy_(weight)
        average.add()
    return average


def test_the_average_is_the_mean_of_the_states() -> None:
    model, weights = nn.Linear(3, 2, bias=False), torch.randn(7, 2, 3)

    average = averaged(model, weights)

    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), weights.mean(0))
    assert torch.equal(model.weight, weights[-1])


def test_the_model_has_its_own_weights_again_after_an_error() -> None:
    model, weights = nn.Linear(3, 2, bias=False), torch.randn(2, 2, 3)
    average = averaged(model, weights)

    with pytest.raises(ZeroDivisionError), average.in_place():
        raise ZeroDivisionError

    assert torch.equal(model.weight, weights[-1])


def test_what_is_not_trained_is_not_averaged() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)

    assert averaged(model, torch.randn(2, 2, 3)).state().keys() == {"weight"}


def test_before_the_first_state_the_model_is_itself() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()

    with WeightAverage(model).in_place():
        assert torch.equal(model.weight, before)


def test_an_average_of_other_weights_is_refused() -> None:
    average = WeightAverage(nn.Linear(3, 2, bias=False))

    with pytest.raises(KeyError, match="averages of other weights: weight"):
        average.load_state({}, states=2)
