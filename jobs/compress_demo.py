"""The demonstration of jobs/compress.py: a synthetic log in Criteo's raw format, and its dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from afm_dist.dataset.manifest import Manifest
from afm_dist.pipelines.context import Context, Dataset
from afm_dist.pipelines.step import Step
from jobs.compress_options import Compress

if TYPE_CHECKING:
    from afm_dist.planning.capacity import Estimate
    from afm_dist.planning.estimate import Costs
    from data_prep.protocol import Protocol

SHARD_ROWS = 20_000


@dataclass(kw_only=True)
class PrepareDemo(Step[Dataset]):
    """Writes a synthetic log in Criteo's raw format, and prepares it.

    Attributes:
        config: Of the job.
    """

    config: Compress

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give the preparation."""
        from data_prep.dry_run import estimate_synthetic

        protocol = demo_protocol(self.config)
        return [estimate_synthetic(self.config.demo_rows, protocol, costs.cluster, costs.tasks)]

    def work(self, context: Context) -> Dataset:
        """Write and prepare it."""
        from afm_dist.dataset.labels import check_labels
        from data_prep.pipeline import prepare
        from data_prep.sources.synthetic import write_synthetic
        from data_prep.sources.synthetic_source import synthetic_source

        config, emit = self.config, context.run.event

        def work(folder: str) -> None:
            log = write_synthetic(f"{folder}/raw", config.demo_rows, config.seed, emit=emit)
            source, output = synthetic_source(log), f"{folder}/data"
            prepare(source, output, demo_protocol(config), options=context.options, emit=emit)

        stage = context.run.stage("prepare", work, config={"rows": config.demo_rows, "seed": config.seed})
        manifest = Manifest.load(stage.file("data"))
        check_labels(manifest)
        return Dataset(stage, manifest)


def demo_protocol(config: Compress) -> Protocol:
    """Say how the synthetic log is prepared."""
    from data_prep.protocol import Protocol

    return Protocol(seed=config.seed, rows_per_shard=SHARD_ROWS)
