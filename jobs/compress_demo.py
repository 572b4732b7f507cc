"""The demonstration of jobs/compress.py: a synthetic log in Criteo's raw format, and its dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afm_dist.runs.run import Run, Stage
from jobs.compress_options import Compress

if TYPE_CHECKING:
    from afm_dist.dataset.manifest import Manifest
    from data_prep.protocol import Protocol

SHARD_ROWS = 20_000


def demo_dataset(run: Run, config: Compress) -> tuple[Stage, Manifest]:
    """A synthetic log in Criteo's raw format, and the dataset made of it."""
    from afm_dist.dataset.manifest import Manifest
    from data_prep.pipeline import prepare
    from data_prep.sources.synthetic import write_synthetic
    from data_prep.sources.synthetic_source import synthetic_source

    def work(folder: str) -> None:
        log = write_synthetic(f"{folder}/raw", config.demo_rows, config.seed, emit=run.event)
        source, output = synthetic_source(log), f"{folder}/data"
        prepare(source, output, demo_protocol(config), options=config.resources, emit=run.event)

    stage = run.stage("prepare", work, config={"rows": config.demo_rows, "seed": config.seed})
    return stage, Manifest.load(stage.file("data"))


def demo_protocol(config: Compress) -> Protocol:
    """How the synthetic log is prepared."""
    from data_prep.protocol import Protocol

    return Protocol(seed=config.seed, rows_per_shard=SHARD_ROWS)
