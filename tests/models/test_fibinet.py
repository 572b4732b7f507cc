"""Huang et al., RecSys 2019, eqs. 1 to 3, 6, 7 and 9."""

from __future__ import annotations

import numpy as np
import pytest

from afm_dist.errors import OptionError
from tests.models.small_models import FIELDS, Array, Weights, assert_logits_follow, mlp, relu, small_model


def bilinear(matrices: Array, v: Array) -> Array:
    """All pairs i < j, field by field."""
    pairs = [(i, j) for i in range(len(v)) for j in range(i + 1, len(v))]
    assert len(pairs) == len(matrices)
    return np.concatenate([(v[i] @ W) * v[j] for W, (i, j) in zip(matrices, pairs, strict=True)])


@pytest.mark.parametrize("reduction", [1, 3, 5])
def test_logits_are_those_of_the_paper(reduction: int) -> None:
    def rest(weights: Weights, e: Array, numbers: Array) -> float:
        W1, W2 = weights["senet.excitation.0.weight"], weights["senet.excitation.2.weight"]
        assert len(W1) == max(1, len(e) // reduction)
        importance = relu(W2 @ relu(W1 @ np.array([vector.mean() for vector in e])))
        weighted = np.array([a * vector for a, vector in zip(importance, e, strict=True)])
        p = bilinear(weights["bilinear.weight"], e)
        q = bilinear(weights["weighted_bilinear.weight"], weighted)
        return mlp(weights, np.concatenate([p, q, numbers]))

    assert_logits_follow("fibinet", rest, reduction=reduction)


def test_a_single_categorical_field_is_refused() -> None:
    with pytest.raises(OptionError, match=r"--model fibinet: one categorical field has no partner"):
        small_model("fibinet", FIELDS[:2])
