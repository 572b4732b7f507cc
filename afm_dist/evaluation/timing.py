"""Timing several things against each other: in turn, medians, ratios within a round.

On a machine whose speed changes from second to second, only what ran in the same round compares.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Speedup:
    """How much faster one thing is than another.

    Attributes:
        median: Median over the rounds of the other's time / its own time.
        smallest: Smallest of them.
        largest: Largest of them.
    """

    median: float
    smallest: float
    largest: float

    @classmethod
    def over(cls, reference: Sequence[float], own: Sequence[float]) -> Speedup:
        """Compute it from the seconds of each round."""
        ratios = [theirs / ours for theirs, ours in zip(reference, own, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


def time_interleaved(
    actions: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = WARM_UP_ROUNDS
) -> dict[str, list[float]]:
    """Measure the seconds of every action in every round; in each round all run, one after the other.

    Args:
        actions: What to time, by name.
        rounds: Rounds that count.
        warm_up: Rounds before them that do not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(warm_up + rounds):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[warm_up:] for name, times in seconds.items()}
