"""How many rows a second a model scores: pairs of models, interleaved, ratios of one run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from afm_dist.dataset.reader import Batch

BATCH_SIZE = 10_000
ROUNDS = 9
WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Throughput:
    """Speed of a model and its ratio to a reference measured in the same rounds.

    Attributes:
        rows_per_second: Median over the rounds.
        ratio: Median over the rounds of reference time / own time.
        ratio_min: Smallest of them.
        ratio_max: Largest of them.
    """

    rows_per_second: float
    ratio: float
    ratio_min: float
    ratio_max: float


def compare_throughput(
    reference: nn.Module, model: nn.Module, batch: Batch, *, rounds: int = ROUNDS
) -> tuple[float, Throughput]:
    """Time both models on the same batch, in turn, in this process with its threads.

    Args:
        reference: The model to compare with, in eval mode.
        model: The model of interest, in eval mode.
        batch: Rows to score, in memory.
        rounds: Timed rounds, after two to warm up.

    Returns:
        The reference's rows per second (median), and the model's throughput.
    """
    ids, numeric = batch.ids.long(), batch.numeric
    times: list[tuple[float, float]] = []
    with torch.inference_mode():
        for _ in range(WARM_UP_ROUNDS + rounds):
            pair = []
            for candidate in (reference, model):
                started = time.perf_counter()
                candidate(ids, numeric)
                pair.append(time.perf_counter() - started)
            times.append((pair[0], pair[1]))
    times = times[WARM_UP_ROUNDS:]
    ratios = [ours_reference / ours for ours_reference, ours in times]
    return (
        len(batch) / statistics.median(reference_time for reference_time, _ in times),
        Throughput(
            rows_per_second=len(batch) / statistics.median(own for _, own in times),
            ratio=statistics.median(ratios),
            ratio_min=min(ratios),
            ratio_max=max(ratios),
        ),
    )
