"""From a raw Criteo log to shards and batches: rows a second, and memory.

The yardstick is Polars merely parsing the same file, all 40 columns, on all cores. With the
interpreter of an environment that holds FuxiCTR (extra ``peers``) its rate is measured too: the
marginal one, between a small and a large log, so that what it does once does not count.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl
import ray

from afm_dist import storage
from afm_dist.errors import OptionError
from afm_dist.evaluation.timing import Speedup, time_interleaved
from afm_dist.runtime.cluster import ensure_ray
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.synthetic import write_synthetic
from data_prep.work import Usage
from jobs.benchmarks import fuxictr_peer, reading
from jobs.benchmarks.conditions import quiet
from jobs.benchmarks.result import Result, compared, rates

SUITE = "prepare"
PARSING = "Polars parsing alone"
PREPARING = "prepare, log to shards"
PEER = "FuxiCTR, marginal"
SMALLER = 10
PEER_ROWS = (200_000, 600_000)
MEGABYTE = 1e6


def run(*, rows: int, rounds: int, peers_python: str | None) -> list[Result]:
    """Figures of the preparation, its memory, the peer, and the reader."""
    ensure_ray()
    with tempfile.TemporaryDirectory(prefix="afm-dist-") as folder, quiet():
        log = _log(folder, rows)
        # Fresh workers: those that wrote the log keep the memory they needed for it.
        ray.shutdown()
        ensure_ray()
        preparing = _Preparing(folder)
        memory = _memory(preparing, log, rows)
        seconds = time_interleaved(
            {
                PARSING: lambda: pl.read_csv(log, separator="\t", has_header=False),
                PREPARING: lambda: preparing(log),
            },
            rounds,
            warm_up=1,
        )
        results = [*rates(SUITE, rows, seconds, PARSING), *memory]
        if peers_python is not None:
            results.extend(_peer(peers_python, folder, log, rows, preparing, rounds))
    return [*results, *reading.run(rows=min(rows, 1_000_000), rounds=rounds)]


class _Preparing:
    """Prepares a log, each time to a new place, and notes the memory of the workers."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.usage = Usage()
        self._numbers = itertools.count()

    def __call__(self, log: str) -> None:
        output = str(Path(self.folder, f"data-{next(self._numbers)}"))
        prepare(CriteoSource([log]), output, Protocol(), usage=self.usage)
        storage.remove(output)


def _log(folder: str, rows: int) -> str:
    """A planted log as one file, like Criteo's."""
    log = write_synthetic(str(Path(folder, "raw")), rows, 0)
    path = Path(folder, "train.txt")
    with path.open("wb") as whole:
        for part in log.paths:
            with Path(part).open("rb") as file:
                shutil.copyfileobj(file, whole, 1 << 22)
            Path(part).unlink()
    return str(path)


def _head(log: str, rows: int) -> str:
    """The beginning of a log as a file of its own."""
    path = Path(log).with_name(f"head-{rows}.txt")
    with Path(log).open("rb") as whole, path.open("wb") as part:
        part.writelines(itertools.islice(whole, rows))
    return str(path)


def _memory(preparing: _Preparing, log: str, rows: int) -> list[Result]:
    """Peak memory of a worker: first for a tenth of the rows, since a peak does not come down again."""
    results = []
    few = max(1, rows // SMALLER)
    for path, count in ((_head(log, few), few), (log, rows)):
        preparing(path)
        name = f"peak memory of a worker, {count:,} rows"
        value = preparing.usage.peak_bytes / MEGABYTE
        results.append(Result(suite=SUITE, name=name, value=value, unit="MB"))
    ratio = results[1].value / results[0].value
    return [results[0], compared(results[1], results[0].name, Speedup(ratio, ratio, ratio))]


def _peer(python: str, folder: str, log: str, rows: int, preparing: _Preparing, rounds: int) -> list[Result]:
    """Marginal rates: rows between the two sizes over the seconds between them."""
    sizes = [min(rows, size) for size in PEER_ROWS]
    if sizes[0] == sizes[1]:
        raise OptionError(f"--rows {rows}: a marginal rate needs more than {PEER_ROWS[0]} rows")
    ours, theirs = f"{PREPARING}, marginal", PEER
    actions: dict[str, Callable[[], object]] = {}
    own_seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes:
        head = _head(log, size)
        csv = _split_csv(folder, head, size)
        actions[f"{ours} {size}"] = partial(preparing, head)
        actions[f"{theirs} {size}"] = partial(_time_peer, python, csv, own_seconds[size])
    seconds = time_interleaved(actions, rounds, warm_up=1)
    between = sizes[1] - sizes[0]
    our_rates = [
        between / (large - small)
        for small, large in zip(seconds[f"{ours} {sizes[0]}"], seconds[f"{ours} {sizes[1]}"], strict=True)
    ]
    their_rates = [
        between / (large - small)
        for small, large in zip(own_seconds[sizes[0]][1:], own_seconds[sizes[1]][1:], strict=True)
    ]
    ratios = sorted(our / their for our, their in zip(our_rates, their_rates, strict=True))
    spread = Speedup(statistics.median(ratios), ratios[0], ratios[-1])
    unit = "rows/s"
    peer = Result(suite=SUITE, name=theirs, value=statistics.median(their_rates), unit=unit, runs=rounds)
    own = Result(suite=SUITE, name=ours, value=statistics.median(our_rates), unit=unit, runs=rounds)
    return [peer, compared(own, theirs, spread)]


def _split_csv(folder: str, log: str, rows: int) -> Path:
    """The log as the peer wants it: with a header, and already split."""
    target = Path(folder, f"csv-{rows}")
    target.mkdir()
    names = ["label", *fuxictr_peer.NUMBERS, *fuxictr_peer.TOKENS]
    frame = pl.read_csv(log, separator="\t", has_header=False, new_columns=names, infer_schema=False)
    bounds = [0, rows * 8 // 10, rows * 9 // 10, rows]
    for name, (start, stop) in zip(("train", "validation", "test"), itertools.pairwise(bounds), strict=True):
        frame[start:stop].write_csv(target / f"{name}.csv")
    return target


def _time_peer(python: str, csv: Path, seconds: list[float]) -> None:
    """Notes the peer's own seconds, without those of starting its interpreter."""
    seconds.append(_run_peer(python, csv))


def _run_peer(python: str, csv: Path) -> float:
    output = csv / "output"
    files = [str(csv / f"{name}.csv") for name in ("train", "validation", "test")]
    command = [python, fuxictr_peer.__file__, *files, str(output), str(Protocol().threshold)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=csv)
    lines = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if done.returncode or not lines:
        tail = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise OptionError(f"--peers-python {python}: FuxiCTR did not run there ({tail})")
    shutil.rmtree(output)
    return float(lines[-1].split()[1])
