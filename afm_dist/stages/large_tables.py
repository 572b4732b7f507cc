"""Stages that compress a table larger than memory: statistics from the counts, and the new checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from afm_dist import storage
from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.compression.plan import TABLE
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError
from afm_dist.large_tables.rewrite import compress_table
from afm_dist.large_tables.statistics import stored_moments
from afm_dist.large_tables.table_checkpoint import TableCheckpoint, empty_model
from afm_dist.methods.low_rank.ranks import FixedRank, plan_ranks
from afm_dist.planning.capacity import Estimate, JobPlan
from afm_dist.planning.estimate import PROCESS_BYTES, TASKS_START_S
from afm_dist.runs.run import Run, Stage
from afm_dist.runtime import console
from afm_dist.runtime.resources import Cluster, CpuOptions, TaskResources
from afm_dist.statistics.moments import RANGE_ROWS, TABLE_ROWS
from afm_dist.statistics.moments_file import load_moments, save_moments
from afm_dist.statistics.partials import remove_partials
from afm_dist.statistics.spectrum import eigendecompose

# This module and what it imports leave training alone: to import that takes 100 MB.
MOMENTS = "moments.safetensors"
STATISTICS = "statistics-embedding"
CHECKPOINT = "checkpoint"
# Of a table, on one core of the small machine of BENCHMARKS.md; its disk writes much less.
PASS_BYTES_PER_SECOND = 5e8
# A block in its own type and in float64, and what is made of it.
BLOCK_COPIES = 5
COUNT_BYTES = 16


def check_rank(source: TableCheckpoint, rank: int) -> None:
    """Refuse an embedding dimension that the table cannot have, before anything is started.

    Raises:
        OptionError: names it and the table's.
    """
    width = source.table.shape[1]
    if not 1 <= rank < width:
        raise OptionError(
            f"--embedding-dim {rank}: the embeddings of {source.location} have {width} dimensions; give a "
            f"number from 1 to {width - 1}"
        )


def statistics(
    run: Run, data: Stage, manifest: Manifest, source: TableCheckpoint, *, options: CpuOptions
) -> Stage:
    """Compute E[e] and Cov(e) of every field, from the vocabulary's counts (paper eq. 7)."""

    def work(folder: str) -> None:
        moments = stored_moments(source, manifest, folder=folder, options=options, emit=run.event)
        save_moments(storage.join(folder, MOMENTS), moments)
        remove_partials(folder)

    return run.stage(STATISTICS, work, inputs=[data, external_source(source)])


def checkpoint(
    run: Run,
    data: Stage,
    manifest: Manifest,
    source: TableCheckpoint,
    moments: Stage,
    rank: int,
    *,
    options: CpuOptions,
) -> Stage:
    """Project the tables (eq. 10), and fold the projections into the first linear layer (eq. 12).

    What a raw row needs to be scored comes along, as with every checkpoint that ships.
    """
    policy = FixedRank(rank=rank)

    def work(folder: str) -> None:
        known = load_moments(moments.file(MOMENTS))
        folds: Mapping[str, str] = getattr(type(empty_model(source.config)), "folds", {})
        plan = plan_ranks(known, policy, folded_into=folds.get(TABLE))
        kept = sorted(eigendecompose(item).kept_energy(rank) for item in known.values())
        console.info(
            f"  {len(known)} fields to {rank} dimensions, which keep {kept[0]:.1%} to {kept[-1]:.1%} of the "
            f"variance (median {kept[len(kept) // 2]:.1%})"
        )
        compress_table(source, folder, plan, known, options=options, emit=run.event)
        preprocessing.attach(manifest, folder)
        before, after = size_on_disk(source.location), size_on_disk(folder)
        console.info(f"  {before:,} bytes before, {after:,} after: {before / after:.2f} times smaller")

    return run.stage(
        CHECKPOINT,
        work,
        config={"policy": asdict(policy)},
        inputs=[data, external_source(source), moments],
    )


def external_source(source: TableCheckpoint) -> Stage:
    """Register the checkpoint as an input; another one when its files have other sizes or times of change."""
    return Stage.external("source", source.location, source.mark())


def job_plan(
    source: TableCheckpoint, rank: int, *, options: CpuOptions, cluster: Cluster, output: str
) -> JobPlan:
    """Estimate what the stages take: memory is bounded by blocks and ranges of rows, not by the table."""
    rows, width = source.table.shape
    item = source.table.dtype.itemsize
    groups = -(-rows // RANGE_ROWS)
    codes = rows * rank * item
    tasks = TaskResources(cpus=options.task_cpus)
    block = BLOCK_COPIES * min(rows, TABLE_ROWS) * width * 8
    slots = max(1, min(groups, tasks.slots(cluster.nodes)))
    seconds = TASKS_START_S + source.table.nbytes / PASS_BYTES_PER_SECOND / slots
    dense = sum(tensor.nbytes for tensor in source.tensors.values() if tensor.shape[:1] != (rows,))
    driver = PROCESS_BYTES + 4 * dense
    result = source.nbytes - source.table.nbytes + codes
    return JobPlan(
        estimates=(
            Estimate(
                stage=STATISTICS,
                place="tasks",
                rows=rows,
                tasks=groups,
                memory=PROCESS_BYTES + block + COUNT_BYTES * min(rows, RANGE_ROWS),
                driver=driver,
                disk=(groups + len(source.fields)) * 8 * width * (width + 1),
                seconds=seconds,
            ),
            Estimate(
                stage=CHECKPOINT,
                place="tasks",
                rows=rows,
                tasks=groups,
                memory=PROCESS_BYTES + block + min(rows, RANGE_ROWS) * rank * item,
                driver=driver,
                # The parts of the codes lie beside the result until it is whole.
                disk=result + codes,
                seconds=seconds,
            ),
        ),
        cluster=cluster,
        tasks=tasks,
        output=output,
    )
