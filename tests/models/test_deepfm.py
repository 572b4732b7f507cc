"""Guo et al., IJCAI 2017, eqs. 1 to 4."""

from __future__ import annotations

from tests.models.small_models import Array, Weights, assert_logits_follow, flat, mlp


def test_logits_are_those_of_the_paper() -> None:
    def rest(weights: Weights, e: Array, numbers: Array) -> float:
        pairs = sum(e[i] @ e[j] for i in range(len(e)) for j in range(i + 1, len(e)))
        return pairs + mlp(weights, flat(e, numbers))

    assert_logits_follow("deepfm", rest)
