"""Wang et al., WWW 2021, eq. 1, in the parallel structure."""

from __future__ import annotations

import pytest

from tests.models.small_models import Array, Weights, assert_logits_follow, flat, mlp


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_logits_are_those_of_the_paper(n_layers: int) -> None:
    def rest(weights: Weights, e: Array, numbers: Array) -> float:
        x0 = x = flat(e, numbers)
        for layer in range(n_layers):
            W, b = weights[f"cross.{layer}.linear.weight"], weights[f"cross.{layer}.linear.bias"]
            x = x0 * (W @ x + b) + x
        return weights["cross_output.weight"][0] @ x + mlp(weights, flat(e, numbers))

    assert_logits_follow("dcnv2", rest, cross_layers=n_layers)
