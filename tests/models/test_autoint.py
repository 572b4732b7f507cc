"""Song et al., CIKM 2019, eqs. 5 to 9."""

from __future__ import annotations

import numpy as np
import pytest

from afm_dist.errors import OptionError
from tests.models.small_models import (
    FIELDS,
    Array,
    T,
    Weights,
    assert_logits_follow,
    flat,
    mlp,
    relu,
    small_model,
)


def interacting(W: Array, e: Array, n_heads: int) -> Array:
    """One layer; W holds W_Query, W_Key, W_Value and W_Res one below the other."""
    queries, keys, values, residuals = np.split(W, 4)
    width = T // n_heads
    result = []
    for m in range(len(e)):
        heads = []
        for h in range(n_heads):
            own = slice(h * width, (h + 1) * width)
            scores = [np.exp((queries[own] @ e[m]) @ (keys[own] @ e[k])) for k in range(len(e))]
            heads.extend(sum(score * (values[own] @ e[k]) for k, score in enumerate(scores)) / sum(scores))
        result.append(relu(np.array(heads) + residuals @ e[m]))
    return np.array(result)


@pytest.mark.parametrize(("n_layers", "n_heads"), [(3, 2), (1, 1), (2, 4)])
def test_logits_are_those_of_the_paper(n_layers: int, n_heads: int) -> None:
    def rest(weights: Weights, e: Array, numbers: Array) -> float:
        attended = e
        for layer in range(n_layers):
            attended = interacting(weights[f"interacting.{layer}.weights.weight"], attended, n_heads)
        output = weights["interacting_output.weight"][0] @ attended.flatten()
        return output + mlp(weights, flat(e, numbers))

    assert_logits_follow("autoint", rest, interacting_layers=n_layers, heads=n_heads)


def test_heads_that_do_not_divide_the_embedding_are_refused() -> None:
    with pytest.raises(OptionError, match="--embedding-dim 4 cannot be shared out among 3 heads"):
        small_model("autoint", FIELDS, heads=3)
