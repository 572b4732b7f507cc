"""Scoring with DeepFM before and after compression: rows a second and latency, by batch, threads, runtime.

Ids are converted and batches made before the clock runs. In a round all of one batch size runs in turn.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from afm_dist.errors import OptionError
from afm_dist.evaluation.timing import WARM_UP_ROUNDS, Speedup, time_interleaved
from afm_dist.export.onnx_file import INSTALL
from afm_dist.runtime import console
from afm_dist.serving.rows import Precision
from jobs.benchmarks import criteo_shape
from jobs.benchmarks.inference_models import BASELINE, EMB, ModelShape, models_of
from jobs.benchmarks.inference_runtimes import MLP_ALONE, PreparedRuntime, Runtime, Score, is_installed
from jobs.benchmarks.result import Result, compared, rates

SUITE = "inference"
# Batches of the largest size: so many different rows that the caches are not warmer than in serving.
BATCHES = 32
# A small batch is scored several times in a round.
ROWS_A_ROUND, CALLS_A_ROUND = 2_000, 200
# Of fewer calls the slowest is no percentile.
CALLS_FOR_P99 = 100


def run(
    shape: ModelShape,
    *,
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    runtimes: Sequence[Runtime],
    precision: Precision,
    rounds: int,
) -> list[Result]:
    """Every model in every runtime.

    Args:
        shape: Of log and model.
        batch_sizes: Each is measured.
        threads: Numbers of threads; each is measured.
        runtimes: Each is measured.
        precision: Of the tables of the forms for inference.
        rounds: Rounds that count.

    Raises:
        OptionError: no runtime is installed.
    """
    present = [runtime for runtime in runtimes if is_installed(runtime)]
    if not present:
        raise OptionError(
            f"--runtimes {' '.join(runtimes)}: ONNX Runtime is not installed; {INSTALL}, "
            "or name another runtime"
        )
    if len(present) < len(runtimes):
        console.info(f"  without ONNX Runtime, which is not installed ({INSTALL})")
    prepared = PreparedRuntime(models_of(shape), shape.fields, precision, max(batch_sizes))
    (pool,) = criteo_shape.batches(shape.cardinalities, BATCHES * max(batch_sizes), 1, shape.numeric)
    ids, numeric = pool.ids.long(), pool.numeric
    results = []
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            scorers = {runtime: prepared.scorers(runtime) for runtime in present}
            for size in batch_sizes:
                batches = [*zip(ids.split(size), numeric.split(size), strict=True)][: len(ids) // size]
                named = f"{shape.name}, batch {size}, {count} thread{'s' * (count > 1)}, "
                results += _measured(scorers, batches, size, rounds, named)
    finally:
        torch.set_num_threads(before)
    return results


class _Calls:
    """Scores some batches one after the other, and keeps how long each took."""

    def __init__(self, score: Score, batches: Sequence[tuple[Tensor, Tensor]], calls: int) -> None:
        self._score = score
        self._batches = itertools.cycle(batches)
        self._calls = calls
        self.seconds: list[float] = []

    def __call__(self) -> None:
        for ids, numeric in itertools.islice(self._batches, self._calls):
            started = time.perf_counter()
            self._score(ids, numeric)
            self.seconds.append(time.perf_counter() - started)


def _measured(
    scorers: Mapping[Runtime, Mapping[str, Score]],
    batches: Sequence[tuple[Tensor, Tensor]],
    size: int,
    rounds: int,
    named: str,
) -> list[Result]:
    calls = min(CALLS_A_ROUND, max(1, ROWS_A_ROUND // size))
    actions = {
        f"{runtime}: {name}": _Calls(score, batches, calls)
        for runtime, scores in scorers.items()
        for name, score in scores.items()
    }
    with torch.inference_mode():
        seconds = time_interleaved(actions, rounds)
    results = []
    for runtime, scores in scorers.items():
        own = {name: seconds[f"{runtime}: {name}"] for name in scores}
        prefix = f"{named}{runtime}: "
        figures = rates(SUITE, size * calls, own, BASELINE, prefix=prefix)
        results += figures
        if MLP_ALONE in own:
            (compressed,) = (figure for figure in figures if figure.name == prefix + EMB)
            again = replace(compressed, name=f"{prefix}{EMB}, to its {MLP_ALONE}")
            results.append(compared(again, prefix + MLP_ALONE, Speedup.over(own[MLP_ALONE], own[EMB])))
        for name in scores:
            results += _latencies(prefix + name, actions[f"{runtime}: {name}"].seconds, rounds)
    return results


def _latencies(name: str, seconds: Sequence[float], rounds: int) -> list[Result]:
    """Median and 99th percentile of the calls in the rounds that count; none of few calls."""
    counting = seconds[-len(seconds) * rounds // (rounds + WARM_UP_ROUNDS) :]
    if len(counting) < CALLS_FOR_P99:
        return []
    return [
        Result(
            suite=SUITE,
            name=f"{name}, p{percentile}",
            value=1e3 * float(np.percentile(counting, percentile)),
            unit="ms",
            runs=rounds,
        )
        for percentile in (50, 99)
    ]
