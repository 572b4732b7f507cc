"""The step that searches for plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from afm_dist import storage
from afm_dist.compression.plan import Plan
from afm_dist.dataset.manifest import Manifest
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.planning.capacity import Estimate
from afm_dist.planning.estimate import Costs
from afm_dist.runs.run import Stage
from afm_dist.search.grid import MOMENTS, SENSITIVITY
from afm_dist.search.search import Problem, Search, counts_of
from afm_dist.stages.training import Model
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.sensitivity_file import load_sensitivity
from afm_dist.statistics.statistics import Statistics

__all__ = ["MOMENTS", "SENSITIVITY", "SearchPlans", "SearchResult", "read_known"]


def read_known(manifest: Manifest, stage: Stage, *, also: str | None = None) -> Statistics:
    """Read what a stage left of a model: moments, the sensitivity if it was measured; with the counts.

    Args:
        manifest: The dataset, for the counts.
        stage: The stage.
        also: A file with moments that take the place of others.
    """
    path = stage.file(SENSITIVITY)
    sensitivity = load_sensitivity(path) if storage.exists(path) else None
    moments = load_moments(stage.file(MOMENTS)) | ({} if also is None else load_moments(also))
    return Statistics(moments, sensitivity, counts_of(manifest))


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        stage: Of the search.
        plans: By the variant whose sizes they are, or by the model that comes of them.
        budget: Bytes that a compressed checkpoint may have; None: as many as it takes.
    """

    stage: Stage
    plans: Mapping[str, Plan]
    budget: int | None = None


@dataclass(frozen=True)
class StageOf(Step[Stage]):
    """Gives the stage of a search, for what it left besides plans.

    Attributes:
        found: What it found.
    """

    found: Step[SearchResult]

    @property
    def result(self) -> Stage:
        """Give the stage, once the search has run."""
        return self.found.result.stage

    def work(self, context: Context) -> Stage:
        """Do nothing."""
        return self.result


@dataclass(kw_only=True)
class SearchPlans(Step[SearchResult]):
    """Searches for what becomes of a model.

    Attributes:
        search: How.
        model: The uncompressed model.
        statistics: Moments of its linear layers.
    """

    search: Search
    model: Model
    statistics: Step[Stage]

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give what the search takes."""
        return self.search.estimates(costs)

    def work(self, context: Context) -> SearchResult:
        """Search."""
        statistics = self.statistics.result
        problem = Problem(
            context,
            self.model.checkpoint,
            load_moments(statistics.file(MOMENTS)),
            absorb=self.search.rows.absorb,
        )
        stage = context.run.stage(
            self.search.stage,
            lambda folder: self.search.propose(problem, folder),
            config=self.search.fingerprint(problem),
            inputs=[context.data, self.model.step.result.stage, statistics],
        )
        return SearchResult(
            stage=stage, plans=self.search.chosen(stage), budget=self.search.budget(problem.bytes)
        )
