"""He & Chua, SIGIR 2017, eqs. 3 and 7."""

from __future__ import annotations

from tests.models.small_models import Array, Weights, assert_logits_follow, mlp


def test_logits_are_those_of_the_paper() -> None:
    def rest(weights: Weights, e: Array, numbers: Array) -> float:
        pooled = sum(e[i] * e[j] for i in range(len(e)) for j in range(i + 1, len(e)))
        return mlp(weights, [*pooled, *numbers])

    assert_logits_follow("nfm", rest)
