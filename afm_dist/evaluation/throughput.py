"""How many rows a second models score: all in turn, ratios of one run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from afm_dist.dataset.batch import Batch
from afm_dist.evaluation.timing import Speedup, time_interleaved

BATCH_SIZE = 10_000
ROUNDS = 31


@dataclass(frozen=True)
class Throughput:
    """Speed of a model and its ratio to the first one, measured in the same rounds.

    Attributes:
        rows_per_second: Median over the rounds.
        ratio: Median over the rounds of the first one's time / own time.
        ratio_min: Smallest of them.
        ratio_max: Largest of them.
    """

    rows_per_second: float
    ratio: float
    ratio_min: float
    ratio_max: float


def measure_throughput(
    models: Mapping[str, nn.Module], batch: Batch, *, rounds: int = ROUNDS
) -> dict[str, Throughput]:
    """Time models on the same batch, in turn, in this process with its threads.

    Args:
        models: In eval mode, by name; the first is what the others are compared with.
        batch: Rows to score, in memory.
        rounds: Timed rounds, after two to warm up.

    Returns:
        By name.
    """
    ids, numeric = batch.ids.long(), batch.numeric
    with torch.inference_mode():
        seconds = time_interleaved(
            {name: partial(model, ids, numeric) for name, model in models.items()}, rounds
        )
    first = next(iter(seconds.values()))
    return {
        name: _throughput(len(batch) / statistics.median(own), Speedup.over(first, own))
        for name, own in seconds.items()
    }


def _throughput(rows_per_second: float, speedup: Speedup) -> Throughput:
    return Throughput(rows_per_second, speedup.median, speedup.smallest, speedup.largest)
