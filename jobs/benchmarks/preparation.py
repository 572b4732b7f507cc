"""Rows a second from a raw Criteo log to shards, against Polars merely parsing the same file."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from afm_dist import console, storage
from afm_dist.cluster import ensure_ray
from afm_dist.evaluation.timing import time_in_turn
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.sources.synthetic import write_synthetic
from data_prep.sources.synthetic_source import synthetic_source
from jobs.benchmarks.result import Result, rates

SUITE = "prepare"
PARSING = "Polars parsing alone"
PREPARING = "prepare, log to shards"


def run(*, rows: int, rounds: int) -> list[Result]:
    """Both read the whole file with all 40 columns and use all cores."""
    ensure_ray()
    with tempfile.TemporaryDirectory(prefix="afm-dist-") as folder, _quiet():
        log = write_synthetic(str(Path(folder, "raw")), rows, 0)
        numbers = itertools.count()

        def preparing() -> None:
            output = str(Path(folder, f"data-{next(numbers)}"))
            prepare(synthetic_source(log), output, Protocol())
            storage.remove(output)

        seconds = time_in_turn(
            {
                PARSING: lambda: [pl.read_csv(path, separator="\t", has_header=False) for path in log.paths],
                PREPARING: preparing,
            },
            rounds,
            warm_up=1,
        )
    return rates(SUITE, rows, seconds, PARSING)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the preparation's own lines."""
    console.out.quiet = True
    try:
        yield
    finally:
        console.out.quiet = False
