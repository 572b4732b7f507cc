"""Which models are worth having: those that no other beats."""

from __future__ import annotations

from collections.abc import Sequence


def pareto(sizes: Sequence[int], scores: Sequence[float]) -> list[int]:
    """Find the points, by index, that no other beats: none is as small with as high a score.

    Of equal points the first is taken.

    Args:
        sizes: Bytes, the fewer the better.
        scores: E.g. AUC, the more the better.

    Returns:
        By ascending size, hence of ascending score.
    """
    best, front = float("-inf"), []
    for index in sorted(range(len(sizes)), key=lambda index: (sizes[index], -scores[index], index)):
        if scores[index] > best:
            best = scores[index]
            front.append(index)
    return front
