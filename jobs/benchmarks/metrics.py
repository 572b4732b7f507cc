"""AUC, log loss and calibration of many rows on one core: speed, memory, and agreement with scikit-learn."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from afm_dist.evaluation.calibration import calibration, sigmoid
from afm_dist.evaluation.metrics import auc, log_loss
from afm_dist.evaluation.scored_rows import ScoredRows
from afm_dist.evaluation.timing import time_interleaved
from jobs.benchmarks.result import Result, rates

SUITE = "metrics"
WORKERS = 64
OURS = "AUC, log loss, calibration"
MERGED = f"merged from {WORKERS} workers"
OUR_AUC = "AUC alone"
PEER = "scikit-learn, AUC alone"

Action: TypeAlias = Callable[[], float]


def run(*, rows: int, rounds: int) -> list[Result]:
    """Speed and memory of each, and how far the two AUCs are apart."""
    labels, logits = scored(rows)
    timed = actions(labels, logits)
    reference = PEER if PEER in timed else OURS
    results = rates(SUITE, rows, time_interleaved(timed, rounds, warm_up=1), reference)
    results += [_memory(name, action, rows) for name, action in timed.items()]
    if PEER in timed:
        difference = abs(timed[PEER]() - timed[OUR_AUC]())
        results.append(Result(suite=SUITE, name="difference of the AUCs", value=difference, unit="AUC"))
    return results


def scored(rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits around −1.5, and labels drawn with their probabilities."""
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(rows, np.float32) - np.float32(1.5)
    return (generator.random(rows, np.float32) < sigmoid(logits)).astype(np.float32), logits


def actions(labels: NDArray[np.float32], logits: NDArray[np.float32]) -> dict[str, Action]:
    """What is timed, by name; each returns the AUC."""
    parts = [
        ScoredRows.of(*pair)
        for pair in zip(np.array_split(labels, WORKERS), np.array_split(logits, WORKERS), strict=True)
    ]
    timed: dict[str, Action] = {
        OURS: lambda: _all_figures(ScoredRows.of(labels, logits)),
        MERGED: lambda: _all_figures(ScoredRows.merged(parts)),
        OUR_AUC: lambda: auc(ScoredRows.of(labels, logits)),
    }
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        return timed
    return {**timed, PEER: partial(roc_auc_score, labels, logits)}


def _all_figures(rows: ScoredRows) -> float:
    log_loss(rows)
    calibration(rows)
    return auc(rows)


def _memory(name: str, action: Callable[[], Any], rows: int) -> Result:
    """What NumPy holds at most, beyond the arrays that are there before."""
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Result(suite=SUITE, name=f"memory: {name}", value=peak / rows, unit="bytes/row")
