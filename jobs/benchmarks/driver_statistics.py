"""What the driver does after the pass: loads and merges the partials, decomposes the layers; one thread."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from afm_dist.evaluation.timing import time_interleaved
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import load_moments, save_moments
from afm_dist.statistics.spectrum import eigendecompose
from jobs.benchmarks.result import Result

PARTIAL = "partial of two layers"
MERGING = "load and merge a partial"
DECOMPOSING = "decompose two layers"
MEGABYTE = 1e6


def run(suite: str, shape: str, width: int, rounds: int) -> list[Result]:
    """Size of a partial of the second and third layers, and milliseconds.

    Args:
        suite: Name of the suite.
        shape: Put before the names.
        width: Of both layers.
        rounds: That count.
    """
    with tempfile.TemporaryDirectory(prefix="afm-dist-") as folder:
        location = str(Path(folder, "partial.safetensors"))
        moments = {name: _moments(width) for name in ("mlp.3", "mlp.6")}
        save_moments(location, moments)
        size = Path(location).stat().st_size / MEGABYTE
        seconds = time_interleaved(
            {
                MERGING: lambda: [moments[n].merge(part) for n, part in load_moments(location).items()],
                DECOMPOSING: lambda: [eigendecompose(item) for item in moments.values()],
            },
            rounds,
            warm_up=1,
        )
    return [
        Result(suite=suite, name=f"{shape}: {PARTIAL}", value=size, unit="MB"),
        *(_milliseconds(suite, f"{shape}: {name}", own) for name, own in seconds.items()),
    ]


def _moments(width: int) -> Moments:
    rows = torch.randn(2 * width, width, dtype=torch.float64)
    return Moments(count=len(rows), mean=rows.mean(0), scatter=rows.T @ rows)


def _milliseconds(suite: str, name: str, seconds: Sequence[float]) -> Result:
    value = 1000 * statistics.median(seconds)
    return Result(suite=suite, name=name, value=value, unit="ms", runs=len(seconds))
