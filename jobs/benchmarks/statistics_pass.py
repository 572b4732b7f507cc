"""The statistics pass on Ray against the same loop in plain processes, one for each core.

The plain loop is what a script without Ray would do: each process takes an equal share of the
files, from Parquet to moments, and the sums are merged at the end. It commits nothing, so nothing
survives a process that dies. Workers and processes run, and have the model, before time is taken.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import torch

from afm_dist.dataset.manifest import Manifest, Shard
from afm_dist.dataset.reader import read_batches
from afm_dist.evaluation.timing import Speedup, time_interleaved
from afm_dist.models.deepfm import DeepFM
from afm_dist.models.layers import hidden_linears
from afm_dist.runtime.cluster import available_cpus, ensure_ray
from afm_dist.runtime.resources import ResourceOptions
from afm_dist.runtime.sharing import model_bytes
from afm_dist.statistics.collect import BATCH_SIZE, collect_moments
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.observe import Observer, forward_batch
from jobs.benchmarks import criteo_shape, reading
from jobs.benchmarks.conditions import quiet
from jobs.benchmarks.result import Result, compared

SUITE = "pass"
FORWARD = "plain loop, forward alone"
PLAIN = "plain loop, forward and moments"
RAY = "pass on Ray"
# Rows that are written; the files of a longer log are links to theirs.
WRITTEN_ROWS = 1_000_000
# A round takes minutes.
MAX_ROUNDS = 3

Shape = tuple[tuple[int, ...], tuple[int, ...]]


def run(*, rows: int, vocabulary: int, hidden: Sequence[int], rounds: int) -> list[Result]:
    """Rows a second of all cores together."""
    shape = tuple(criteo_shape.cardinalities(vocabulary)), tuple(hidden)
    model = _model(shape)
    watched = hidden_linears("mlp", len(hidden))[1:3]
    with tempfile.TemporaryDirectory(prefix="afm-dist-") as folder, quiet():
        ensure_ray(object_bytes=model_bytes(model))
        cores = available_cpus()
        log = _log(folder, rows, vocabulary)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(cores, mp_context=spawn) as processes:

            def actions(manifest: Manifest) -> dict[str, Callable[[], Mapping[str, Moments]]]:
                plain = partial(_plain, processes, cores, shape, manifest)
                on_ray = partial(collect_moments, options=ResourceOptions(use_gpu="never"))
                return {
                    FORWARD: partial(plain, ()),
                    PLAIN: partial(plain, watched),
                    RAY: partial(on_ray, model, manifest, watched),
                }

            first = actions(replace(log, splits={"train": log.shards("train")[:cores]}))
            difference = _difference(first[PLAIN](), first[RAY]())
            seconds = time_interleaved(actions(log), min(rounds, MAX_ROUNDS), warm_up=0)
    results = [
        Result(
            suite=SUITE,
            name=name,
            value=log.rows("train") / statistics.median(own),
            unit="rows/s",
            runs=len(own),
        )
        for name, own in seconds.items()
    ]
    for i, (slower, faster) in enumerate(pairwise(seconds)):
        ratio = Speedup.over(seconds[slower], seconds[faster])
        results[i + 1] = compared(results[i + 1], slower, ratio)
    return [*results, difference]


def _log(folder: str, rows: int, vocabulary: int) -> Manifest:
    """At least so many rows in Criteo's proportions."""
    written = reading.write_dataset(folder, min(rows, WRITTEN_ROWS), vocabulary)
    shards = list(written.shards("train"))
    distinct = len(shards)
    while sum(shard.rows for shard in shards) < rows:
        original = shards[len(shards) % distinct]
        link = replace(original, path=f"train/part-{len(shards):05d}.parquet")
        os.link(Path(folder, original.path), Path(folder, link.path))
        shards.append(link)
    return replace(written, splits={"train": tuple(shards)})


@lru_cache(1)
def _model(shape: Shape) -> DeepFM:
    """The same weights in every process."""
    sizes, hidden = shape
    torch.manual_seed(0)
    return criteo_shape.deepfm(sizes, hidden).eval()


def _plain(
    processes: ProcessPoolExecutor, cores: int, shape: Shape, manifest: Manifest, watched: Sequence[str]
) -> dict[str, Moments]:
    shards = manifest.shards("train")
    shares = [shards[i * len(shards) // cores : (i + 1) * len(shards) // cores] for i in range(cores)]
    merged: dict[str, Moments] = {}
    for part in processes.map(partial(_loop, shape, manifest, watched), shares):
        for name, moments in part.items():
            merged[name] = merged[name].merge(moments) if name in merged else moments
    return merged


def _loop(
    shape: Shape, manifest: Manifest, watched: Sequence[str], shards: Sequence[Shard]
) -> dict[str, Moments]:
    """The share of one process."""
    torch.set_num_threads(1)
    model = _model(shape)
    observer = Observer(model, watched)
    with torch.inference_mode(), observer.watching():
        for batch in read_batches(manifest, shards, BATCH_SIZE):
            forward_batch(model, batch)
    return observer.moments


def _difference(plain: Mapping[str, Moments], on_ray: Mapping[str, Moments]) -> Result:
    """That both did the same: the largest relative difference of their covariances."""
    differences = [
        float((moments.covariance - on_ray[name].covariance).norm() / moments.covariance.norm())
        for name, moments in plain.items()
    ]
    return Result(
        suite=SUITE,
        name="difference of the covariances",
        value=max(differences),
        unit="relative",
        reference=PLAIN,
    )
