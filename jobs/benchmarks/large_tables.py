"""Compressing a table without having it in memory, against copying the file: time, and resident memory.

The job is run as a user runs it: the time is that of the command, with its imports and the start of a
local Ray. Both read a file that is in no cache and end when what they wrote is on the disk.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import write_checkpoint
from afm_dist.dataset.manifest import Field, Manifest, Shard
from afm_dist.errors import StageError
from afm_dist.evaluation.timing import Speedup
from afm_dist.large_tables.stored import Described, as_bytes, header, in_file_order
from afm_dist.large_tables.table_checkpoint import TableCheckpoint, empty_model
from afm_dist.modules.tensors import named_tensors
from afm_dist.runs.run import SUCCESS, Done
from afm_dist.stages.large_tables import CHECKPOINT, STATISTICS
from data_prep.vocabulary import CHUNK_IDS, write_vocabulary
from jobs.benchmarks.criteo_shape import EMBEDDING_DIM, cardinalities, fields
from jobs.benchmarks.result import Result, compared

SUITE = "tables"
CODES = 2
COPY = "copy the checkpoint"
ROOT = Path(__file__).resolve().parents[2]
BLOCK_ROWS = 1 << 20
SAMPLE_S = 0.3
MEGA = 1e6


def run(*, vocabulary: int, rounds: int) -> list[Result]:
    """Rates are bytes of the uncompressed checkpoint per second."""
    with tempfile.TemporaryDirectory(prefix="afm-dist-") as folder:
        schema = fields(cardinalities(vocabulary))
        data = write_vocabularies(f"{folder}/data", schema)
        checkpoint = write_model(f"{folder}/checkpoint", schema)
        source = TableCheckpoint.open(checkpoint)
        runs = [measure(folder, data, checkpoint) for _ in range(rounds)]
    copies = [each.copy for each in runs]
    results = [_rate(COPY, copies, source.nbytes)]
    named: dict[str, Callable[[Round], float]] = {
        f"{EMBEDDING_DIM} to {CODES} dimensions, the command": lambda each: each.command,
        "statistics and new checkpoint, its stages": lambda each: each.statistics + each.rewriting,
        "statistics": lambda each: each.statistics,
        "new checkpoint": lambda each: each.rewriting,
    }
    for name, seconds in named.items():
        own = [seconds(each) for each in runs]
        results.append(compared(_rate(name, own, source.nbytes), COPY, Speedup.over(copies, own)))
    memory = {
        "the table": float(source.table.nbytes),
        "resident memory of the largest process": float(max(each.largest for each in runs)),
        "resident memory of all, shared once": float(max(each.together for each in runs)),
    }
    return results + [
        Result(suite=SUITE, name=name, value=value / MEGA, unit="MB", runs=rounds)
        for name, value in memory.items()
    ]


def _rate(name: str, seconds: list[float], size: int) -> Result:
    rate = size / MEGA / statistics.median(seconds)
    return Result(suite=SUITE, name=name, value=rate, unit="MB/s", runs=len(seconds))


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round took: seconds, and bytes of resident memory at most."""

    copy: float
    command: float
    statistics: float
    rewriting: float
    largest: int
    together: int


def measure(folder: str, data: str, checkpoint: str) -> Round:
    """Copy the checkpoint, then compress it.

    Raises:
        StageError: the job failed.
    """
    _forget(checkpoint)
    target = Path(folder, "copy")
    started = time.perf_counter()
    target.mkdir()
    for path in Path(checkpoint).iterdir():
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
    copy = time.perf_counter() - started
    shutil.rmtree(target)

    _forget(checkpoint)
    output = Path(folder, "run")
    command = [sys.executable, str(ROOT / "jobs" / "compress_tables.py"), "--data", data]
    command += ["--checkpoint", checkpoint, "--embedding-dim", str(CODES), "--output", str(output)]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        watch = Watch(job.pid)
        printed, _ = job.communicate()
    seconds = time.perf_counter() - started
    watch.stop()
    if job.returncode:
        raise StageError(f"{' '.join(command)} failed: {printed.decode()}")
    stages = [
        storage.read_json(str(output / name / SUCCESS), Done)["seconds"] for name in (STATISTICS, CHECKPOINT)
    ]
    shutil.rmtree(output)
    return Round(
        copy=copy,
        command=seconds,
        statistics=stages[0],
        rewriting=stages[1],
        largest=watch.largest,
        together=watch.together,
    )


def _forget(checkpoint: str) -> None:
    """Let the operating system drop a checkpoint's files from its cache."""
    for path in Path(checkpoint).iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class Watch:
    """Resident memory of a process and all below it, looked at while they run (Linux).

    Attributes:
        process: The first of them.
        largest: Bytes of any one process at most, what it shares with others included.
        together: Bytes of all together at most, shared memory counted once.
    """

    process: int
    largest: int = 0
    together: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_S):
            sizes = [_resident(each) for each in _family(self.process)]
            self.largest = max([self.largest, *(rss for rss, _ in sizes)])
            self.together = max(self.together, sum(pss for _, pss in sizes))


def _family(process: int) -> set[int]:
    """A process and all below it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family, more = {process}, {process}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - family
        family |= more
    return family


def _resident(process: int) -> tuple[int, int]:
    """Bytes with what is shared, and with its share of that only; nothing when it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    kilobytes = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines[1:])}
    return 1024 * kilobytes.get("Rss", 0), 1024 * kilobytes.get("Pss", 0)


def write_vocabularies(location: str, schema: list[Field]) -> str:
    """A dataset directory with counts as of a log in which the k-th token has a share of about 1/k."""
    sizes = {item.name: item.cardinality for item in schema if item.kind == "categorical"}
    most = max(sizes.values())
    rows = 4 * most * int(np.log(most) + 2)
    files = {}
    for name, size in sizes.items():
        unknown = rows - sum(int(_counts(ids, most).sum()) for ids in _chunks(size))
        chunks = (_tokens(ids, most) for ids in _chunks(size))
        files[name] = write_vocabulary(name, location, chunks, lambda tokens: tokens, unknown)
    shard = Shard(path="train/part-00000.parquet", rows=rows, bytes=0, sha256="")
    manifest = Manifest(
        location=location, label="label", fields=tuple(schema), splits={"train": (shard,)}, vocabulary=files
    )
    manifest.save()
    return location


def _chunks(size: int) -> Iterator[np.ndarray]:
    """The ids above 0 of a field."""
    for start in range(1, size, CHUNK_IDS):
        yield np.arange(start, min(size, start + CHUNK_IDS))


def _counts(ids: np.ndarray, most: int) -> np.ndarray:
    return 1 + 2 * most // ids


def _tokens(ids: np.ndarray, most: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": pl.Series(ids, dtype=pl.Int32),
            "token": pl.Series(ids).cast(pl.String),
            "count": pl.Series(_counts(ids, most), dtype=pl.Int64),
        }
    )


def write_model(location: str, schema: list[Field]) -> str:
    """A DeepFM with random weights, none of which is in memory as a whole."""
    shape = {"embedding_dim": EMBEDDING_DIM, "hidden": (400, 400, 400), "dropout": 0.0}
    config = ModelConfig(architecture="deepfm", hyper_parameters=shape, fields=tuple(schema))
    described = {
        name: Described(shape=tuple(tensor.shape), dtype=tensor.dtype)
        for name, tensor in named_tensors(empty_model(config)).items()
    }
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(BLOCK_ROWS, EMBEDDING_DIM, generator=generator) / 100

    def write(path: str, names: Sequence[str]) -> None:
        ours = {name: described[name] for name in names}
        with storage.open_write(path) as file:
            file.write(header(ours))
            for name in in_file_order(ours):
                left = ours[name].nbytes
                while left:
                    left -= file.write(as_bytes(block)[:left])

    sizes = {name: item.nbytes for name, item in described.items()}
    write_checkpoint(location, config, sizes, write)
    return location
