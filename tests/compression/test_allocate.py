from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.compression.allocate import Choice, front

CHOICES = st.lists(
    st.builds(
        Choice, value=st.none(), cost=st.integers(0, 40), error=st.sampled_from([0.0, 0.5, 1.0, 2.5, 7.0])
    ),
    min_size=1,
    max_size=5,
)
MODULES = st.dictionaries(st.sampled_from("abcd"), CHOICES, min_size=1)


def exhaustive(choices: dict[str, list[Choice]], budget: int) -> float | None:
    """The least error of all combinations within a budget."""
    errors = [
        sum(choice.error for choice in combination)
        for combination in itertools.product(*choices.values())
        if sum(choice.cost for choice in combination) <= budget
    ]
    return min(errors, default=None)


@given(MODULES, st.integers(-20, 160))
@settings(max_examples=300, deadline=None)
def test_it_is_the_best_of_all_combinations(choices: dict[str, list[Choice]], budget: int) -> None:
    best, expected = front(choices).best(budget), exhaustive(choices, budget)

    if expected is None:
        assert best is None
    else:
        assert best is not None
        assert sum(choice.error for choice in best.values()) == expected
        assert sum(choice.cost for choice in best.values()) <= budget
        assert all(best[name] in choices[name] for name in choices)


@given(MODULES, st.integers(2, 6))
@settings(max_examples=200, deadline=None)
def test_a_thinned_front_is_never_over_budget_and_gets_no_worse_with_more(
    choices: dict[str, list[Choice]], limit: int
) -> None:
    thin = front(choices, limit=limit)

    errors = []
    for budget in range(-20, 161):
        best = thin.best(budget)
        if best is not None:
            assert sum(choice.cost for choice in best.values()) <= budget
            errors.append(sum(choice.error for choice in best.values()))
    assert errors == sorted(errors, reverse=True)
    # The cheapest and the best of all are never thinned out.
    assert thin.cost[0] == sum(min(choice.cost for choice in own) for own in choices.values())
    assert thin.error[-1] == pytest.approx(
        sum(min(choice.error for choice in own) for own in choices.values())
    )


def test_choices_that_are_no_numbers_are_refused_by_name() -> None:
    for broken in ([], [Choice(1, 1, float("nan"))], [Choice(1, 1, -1.0)]):
        with pytest.raises(ValueError, match="mlp: choices need"):
            front({"mlp": broken})
