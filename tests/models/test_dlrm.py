"""Naumov et al., arXiv:1906.00091, section 2.2."""

from __future__ import annotations

import pytest

from afm_dist.errors import OptionError
from tests.models.small_models import FIELDS, Array, Weights, assert_logits_follow, mlp, relu, small_model


@pytest.mark.parametrize("n_hidden", [0, 2])
def test_logits_are_those_of_the_paper(n_hidden: int) -> None:
    def rest(weights: Weights, e: Array, numbers: Array) -> float:
        vectors = list(e)
        z: list[float] = []
        if len(numbers):
            projected = numbers
            for layer in range(0, 2 * n_hidden + 1, 2):
                projected = relu(
                    weights[f"bottom.{layer}.weight"] @ projected + weights[f"bottom.{layer}.bias"]
                )
            vectors, z = [projected, *vectors], list(projected)
        dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
        return mlp(weights, [*z, *dots])

    assert_logits_follow("dlrm", rest, bottom=(6, 5)[:n_hidden])


def test_a_single_field_is_refused_but_not_beside_a_number() -> None:
    with pytest.raises(OptionError, match=r"--model dlrm: .*no partner for a dot product"):
        small_model("dlrm", FIELDS[:1])
    assert small_model("dlrm", FIELDS[:2]).mlp[0].in_features == 4 + 1
