"""How many rows a second a model scores: pairs of models, interleaved, ratios of one run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import nn

from afm_dist.dataset.reader import Batch
from afm_dist.evaluation.timing import Speedup, time_in_turn

BATCH_SIZE = 10_000
ROUNDS = 31


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
    with torch.inference_mode():
        seconds = time_in_turn(
            {"reference": lambda: reference(ids, numeric), "model": lambda: model(ids, numeric)}, rounds
        )
    speedup = Speedup.over(seconds["reference"], seconds["model"])
    return (
        len(batch) / statistics.median(seconds["reference"]),
        Throughput(
            rows_per_second=len(batch) / statistics.median(seconds["model"]),
            ratio=speedup.median,
            ratio_min=speedup.smallest,
            ratio_max=speedup.largest,
        ),
    )
