"""The best levels for numbers on a line, by dynamic programming: slow, and right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_error(numbers: NDArray[np.float64], weights: NDArray[np.float64], levels: int) -> float:
    """Give the least weighted mean squared distance from so many levels."""
    order = np.argsort(numbers)
    x, w = numbers[order], weights[order]
    W, A, B = (np.concatenate([[0], np.cumsum(w * x**power)]) for power in (0, 1, 2))

    def of_cells(end: int) -> NDArray[np.float64]:
        weight = np.maximum(W[end] - W[:end], 1e-300)
        return B[end] - B[:end] - (A[end] - A[:end]) ** 2 / weight

    n = len(x)
    best = np.array([0.0] + [of_cells(end)[0] for end in range(1, n + 1)])
    for _ in range(levels - 1):
        best = np.array([0.0] + [float((best[:end] + of_cells(end)).min()) for end in range(1, n + 1)])
    return float(best[n] / W[n])
