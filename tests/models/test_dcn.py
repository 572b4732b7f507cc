"""Wang et al., ADKDD 2017, eqs. 3 to 5."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models.small_models import Array, Weights, assert_logits_follow, flat, mlp


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_logits_are_those_of_the_paper(n_layers: int) -> None:
    def rest(weights: Weights, e: Array, numbers: Array) -> float:
        x0 = x = flat(e, numbers)
        for layer in range(n_layers):
            w, b = weights[f"cross.{layer}.linear.weight"][0], weights[f"cross.{layer}.bias"]
            x = np.outer(x0, x) @ w + b + x
        return weights["cross_output.weight"][0] @ x + mlp(weights, flat(e, numbers))

    assert_logits_follow("dcn", rest, cross_layers=n_layers)
