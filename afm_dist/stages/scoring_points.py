"""The step that scores the models of a sweep on the test split, and how a report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afm_dist import storage
from afm_dist.compression.plan import Plan
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.planning.capacity import Estimate
from afm_dist.planning.estimate import Costs
from afm_dist.runs.run import Stage
from afm_dist.search.grid import BASELINE, POINTS, GridSearch, choosable, front_of, read_points
from afm_dist.search.scoring import PlanScorer
from afm_dist.stages.searching import SearchResult, read_known
from afm_dist.stages.training import Model

SWEEP_NOTE = (
    "Names: afm-r64-d2 has rank 64 in the linear layers and embedding dimension 2, full is as it "
    "was. The factors of weighted models are those with the least change of the logit, to first "
    "order; budget-r64-d2 has such factors, no more bytes than that pair of ranks, and the ranks "
    "(each field its own, unless --field-ranks is uniform) for which the predicted change is least."
)


@dataclass(kw_only=True)
class ScorePoints(Step[Stage]):
    """Scores the models of a sweep on the test split: nothing is chosen by it, only the report shows it.

    Attributes:
        grid: What was tried.
        model: The uncompressed model.
        found: The stage that scored them on the validation split.
    """

    grid: GridSearch
    model: Model
    found: Step[SearchResult]

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a pass over the test split for each model."""
        return [costs.scoring("sweep-test", "test", passes=self.grid.most)]

    def work(self, context: Context) -> Stage:
        """Score the points."""
        tried = self.found.result.stage

        def work(folder: str) -> None:
            scoring = PlanScorer(
                context.run,
                context.manifest,
                self.model.checkpoint,
                folder,
                read_known(context.manifest, tried),
                splits=["test"],
                options=context.options,
            )
            points = read_points(tried)
            with scoring.remembering("sweep-test", models=len(points)) as score:
                for point in points:
                    score(point["name"], point["method"], Plan.from_json(point["plan"]))
                storage.write_json(storage.join(folder, POINTS), score.found)

        inputs = [context.data, self.model.step.result.stage, tried]
        return context.run.stage("sweep-test", work, inputs=inputs)


def points(
    scored: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the points as the report shows them, each with whether none beats it (SVD apart).

    Args:
        scored: On the validation split, by which none beats it.
        measured: The same on the test split.
    """
    test = {point["name"]: {key: point[key] for key in ("auc", "log_loss")} for point in measured}
    ours = [point for point in scored if point["method"] in (BASELINE, *choosable())]
    front = {ours[index]["name"] for index in front_of(ours)}
    left_out = ("plan", "validation_log_loss")
    return [
        {
            **{key: value for key, value in point.items() if key not in left_out},
            **test[point["name"]],
            "front": point["name"] in front,
        }
        for point in scored
    ]
