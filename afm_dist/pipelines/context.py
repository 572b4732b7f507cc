"""Where a job's steps happen: the run directory, the dataset, and what they may take of the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from afm_dist.dataset.manifest import Manifest
from afm_dist.pipelines.step import Step
from afm_dist.runs.run import Run, Stage
from afm_dist.runtime.resources import ResourceOptions
from afm_dist.training.fit import WorkerGroup


class Dataset(NamedTuple):
    """A dataset directory, as a stage and as what its manifest says."""

    stage: Stage
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every step of a job needs.

    Attributes:
        run: The run directory.
        dataset: Gives the dataset; it has run before the others.
        group: The workers of a training, and what each task and worker is given of the cluster.
    """

    run: Run
    dataset: Step[Dataset]
    group: WorkerGroup = field(default_factory=WorkerGroup)

    @property
    def options(self) -> ResourceOptions:
        """Give what each task and worker is given of the cluster."""
        return self.group.options

    @property
    def data(self) -> Stage:
        """Give the stage of the dataset."""
        return self.dataset.result.stage

    @property
    def manifest(self) -> Manifest:
        """Give the dataset's manifest."""
        return self.dataset.result.manifest
