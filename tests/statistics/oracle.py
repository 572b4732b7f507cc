"""Rows, what accumulates them, and the two-pass oracle in float64."""

from __future__ import annotations

import numpy as np
import torch

from afm_dist.statistics.accumulator import MomentAccumulator
from afm_dist.statistics.moments import Moments

BOUND_FLOAT32 = 1e-6
BOUND_FLOAT64 = 1e-8


def two_pass(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: mean and covariance in NumPy float64, mean first, then centred products."""
    values = rows.numpy().astype(np.float64)
    mean = values.mean(0)
    # A second centring removes what is left of the mean's own rounding.
    centred = values - mean
    centred -= centred.mean(0)
    return mean, centred.T @ centred / len(values)


def accumulate(rows: torch.Tensor, batch_size: int) -> Moments:
    accumulator = MomentAccumulator(rows.shape[1])
    for batch in rows.split(batch_size):
        accumulator.update(batch)
    return accumulator.moments


def relative_error(covariance: torch.Tensor, oracle: np.ndarray) -> float:
    return float(np.linalg.norm(covariance.numpy() - oracle) / np.linalg.norm(oracle))


def correlated(
    rows: int, width: int, ratio: float, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    """Rows of unit deviation, correlated, whose mean is ``ratio`` deviations."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mixing
    return (noise + ratio).to(dtype)
