"""What becomes of which module, within a budget: the choices that cost least error together.

A knapsack with one choice a module. Fronts of choices that are not beaten in both cost and error are
merged module by module, so the result is the best there is as long as no front had to be thinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Choices kept after each merge. The bytes of all modules in so many steps are steps finer than any choice.
FRONT = 1 << 16


@dataclass(frozen=True)
class Choice:
    """One way to compress a module.

    Attributes:
        value: What is chosen, for example a config; None leaves the module as it is.
        cost: Bytes; negative, where they are counted from what the module has now.
        error: What it does to the model's output; of modules that are compressed together they add up.
    """

    value: Any
    cost: int
    error: float


@dataclass(frozen=True)
class Front:
    """Combinations of choices, none beaten by another: by ascending cost, of descending error.

    Attributes:
        names: The modules.
        cost: Shape (n,), int64.
        error: Shape (n,), float64.
        chosen: Index of the choice of each module, shape (n, modules), int32.
        choices: Of each module.
    """

    names: Sequence[str]
    cost: NDArray[np.int64]
    error: NDArray[np.float64]
    chosen: NDArray[np.int32]
    choices: Sequence[Sequence[Choice]]

    def best(self, budget: int) -> dict[str, Choice] | None:
        """Find the choices with the least error that cost no more than a budget; None when none do."""
        within = int(np.searchsorted(self.cost, budget, side="right"))
        if within == 0:
            return None
        row = self.chosen[within - 1]
        return {name: own[i] for name, own, i in zip(self.names, self.choices, row, strict=True)}


def front(choices: Mapping[str, Sequence[Choice]], *, limit: int = FRONT) -> Front:
    """All combinations worth choosing, one choice a module.

    Args:
        choices: By module name, at least one each.
        limit: Combinations to keep after each merge; of more, those at even steps of cost are kept, with
            the cheapest and the best.

    Raises:
        ValueError: a module without choices, or an error that is negative or no finite number.
    """
    cost, error = np.zeros(1, np.int64), np.zeros(1)
    chosen = np.zeros((1, 0), np.int32)
    for name, own in choices.items():
        costs = np.array([choice.cost for choice in own], np.int64)
        errors = np.array([choice.error for choice in own], np.float64)
        if not len(own) or not np.isfinite(errors).all() or (errors < 0).any():
            raise ValueError(f"{name}: choices need errors that are finite and not negative")
        total_cost, total_error = (cost[:, None] + costs).ravel(), (error[:, None] + errors).ravel()
        kept = _thinned(_unbeaten(total_cost, total_error), total_cost, limit)
        before, now = np.divmod(kept, len(own))
        cost, error = total_cost[kept], total_error[kept]
        chosen = np.hstack([chosen[before], now[:, None].astype(np.int32)])
    return Front(tuple(choices), cost, error, chosen, tuple(choices.values()))


def _unbeaten(cost: NDArray[np.int64], error: NDArray[np.float64]) -> NDArray[np.intp]:
    """Find the points, by index, that no other beats in both, by ascending cost."""
    order = np.lexsort((error, cost))
    sorted_error = error[order]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(sorted_error)[:-1]])
    return order[sorted_error < best_before]


def _thinned(kept: NDArray[np.intp], cost: NDArray[np.int64], limit: int) -> NDArray[np.intp]:
    if len(kept) <= limit:
        return kept
    steps = np.linspace(cost[kept[0]], cost[kept[-1]], limit)
    # Of the points in a step the last one, which has the least error; no step gets dearer by that.
    places = np.searchsorted(cost[kept], steps, side="right") - 1
    return kept[np.unique(places)]
