"""Compress only the embedding tables of a checkpoint, in memory bounded by blocks of rows.

python jobs/compress_tables.py --data DATA --checkpoint RUN/checkpoint --embedding-dim 2 --output RUN2
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tyro.conf import OmitArgPrefixes

from afm_dist.runs.run import Resume
from afm_dist.runtime import console
from afm_dist.runtime.resources import CPU_EACH, CpuOptions


@dataclass(kw_only=True)
class CompressTables:
    """Compress the embedding tables of a checkpoint without having them in memory.

    For tables larger than memory. There is no pass over the log and no fine-tuning: the statistics follow
    from how often each id occurs, which is in the vocabulary. The result is in OUTPUT/checkpoint.
    """

    data: str
    """Dataset directory, made by jobs/prepare.py, that the model was trained on."""
    checkpoint: str
    """Checkpoint directory of the model. It is told from others by sizes and times of change of its files,
    and compared with its checksums before a stage reads it."""
    embedding_dim: int
    """Embedding dimension after compression."""
    output: str
    """Run directory; created if it is not there."""
    resources: OmitArgPrefixes[CpuOptions] = CPU_EACH
    resume: Resume = "auto"
    """auto: skip what is up to date; never: do everything again."""
    dry_run: bool = False
    """Print what would be done, with what each node must have, and start nothing."""


def main(config: CompressTables) -> None:
    """Run the job."""
    console.info(f"afm-dist compress_tables: {config.checkpoint} to {config.embedding_dim} dimensions")
    # torch and Ray take seconds to import: after the first line.
    from afm_dist import storage
    from afm_dist.checkpoint.config import check_schema
    from afm_dist.dataset.manifest import Manifest
    from afm_dist.large_tables.table_checkpoint import TableCheckpoint
    from afm_dist.planning.capacity import admit
    from afm_dist.planning.show import show
    from afm_dist.runs.run import Run, Stage, check_output
    from afm_dist.runtime.cluster import check_paths, view
    from afm_dist.runtime.machine import work_in_driver
    from afm_dist.stages import large_tables

    check_paths(data=config.data, checkpoint=config.checkpoint, output=config.output)
    check_output(config.output, job="compress_tables")
    manifest = Manifest.load(storage.absolute(config.data))
    data = Stage.external("data", manifest.location, manifest.fingerprint())
    source = TableCheckpoint.open(config.checkpoint)
    check_schema(source.config, manifest, checkpoint=source.location)
    large_tables.check_rank(source, config.embedding_dim)
    planned = large_tables.job_plan(
        source, config.embedding_dim, options=config.resources, cluster=view(), output=config.output
    )
    if config.dry_run:
        show(planned, check=config.resources.capacity_check)
        return
    admit(planned.left(), check=config.resources.capacity_check)
    work_in_driver()
    run = Run(config.output, job="compress_tables", config=asdict(config), resume=config.resume)
    moments = large_tables.statistics(run, data, manifest, source, options=config.resources)
    written = large_tables.checkpoint(
        run, data, manifest, source, moments, config.embedding_dim, options=config.resources
    )
    console.info(f"checkpoint: {written.path}")


if __name__ == "__main__":
    console.run_job(CompressTables, main)
