"""Wang et al., CIKM 2023, eq. 1, in the parallel structure."""

from __future__ import annotations

import pytest

from tests.models.small_models import Array, Weights, assert_logits_follow, flat, mlp, sigmoid


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_logits_are_those_of_the_paper(n_layers: int) -> None:
    def rest(weights: Weights, e: Array, numbers: Array) -> float:
        c0 = c = flat(e, numbers)
        for layer in range(n_layers):
            W, b = weights[f"cross.{layer}.linear.weight"], weights[f"cross.{layer}.linear.bias"]
            c = c0 * (W @ c + b) * sigmoid(weights[f"cross.{layer}.gate.weight"] @ c) + c
        return weights["cross_output.weight"][0] @ c + mlp(weights, flat(e, numbers))

    assert_logits_follow("gdcn", rest, cross_layers=n_layers)
