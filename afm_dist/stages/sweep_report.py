"""The report of a sweep: every size before fine-tuning, and the few models that were fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from afm_dist import report, storage
from afm_dist.compression.plan import Plan
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.planning.capacity import Estimate
from afm_dist.planning.estimate import Costs
from afm_dist.report.degenerate_words import degenerate_layers
from afm_dist.runs.run import STAGE_AGAIN, Stage
from afm_dist.search.grid import BASELINE, POINTS, Grid, choosable, front_of, read_points
from afm_dist.search.scoring import Scored, Scoring
from afm_dist.stages.evaluation import Subject, rows_of
from afm_dist.stages.report_parts import (
    curves,
    frame,
    layers,
    plan_notes,
    row_notes,
    tables,
)
from afm_dist.stages.searching import MOMENTS, SENSITIVITY, Found
from afm_dist.stages.shipping import Shipped
from afm_dist.stages.training import FineTune, Model, Models
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.sensitivity_file import load_sensitivity
from afm_dist.statistics.statistics import Statistics
from afm_dist.training.history import summary
from afm_dist.training.wording import in_words


@dataclass(kw_only=True)
class ScorePoints(Step[Stage]):
    """Scores the models of a sweep on the test split: nothing is chosen by it, only the report shows it.

    Attributes:
        grid: What was tried.
        model: The uncompressed model.
        found: The stage that scored them on the validation split.
    """

    grid: Grid
    model: Model
    found: Step[Found]

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a pass over the test split for each model."""
        return [costs.scoring("sweep-test", "test", passes=self.grid.most)]

    def work(self, context: Context) -> Stage:
        """Score them."""
        tried = self.found.result.stage

        def work(folder: str) -> None:
            scoring = Scoring(
                context.run,
                context.manifest,
                self.model.checkpoint,
                folder,
                load_moments(tried.file(MOMENTS)),
                load_sensitivity(tried.file(SENSITIVITY)),
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


@dataclass(kw_only=True)
class WriteSweepReport(Step[Stage]):
    """Writes ``report/`` of a sweep: ``report.json``, ``report.md`` and ``report.html``.

    Attributes:
        title: Of the report.
        config: Of the job.
        baseline: The uncompressed model.
        found: What was scored on the validation split.
        measured: The same on the test split.
        rewritten: The chosen models before fine-tuning.
        tuned: The same after it.
        shipped: What ships.
        quality: What was measured.
        throughput: The same.
    """

    title: str
    config: Mapping[str, Any]
    baseline: Step[Models]
    found: Step[Found]
    measured: Step[Stage]
    rewritten: Step[Models]
    tuned: FineTune
    shipped: Step[Shipped]
    quality: Step[Stage] = field(init=False)
    throughput: Step[Stage] = field(init=False)

    def work(self, context: Context) -> Stage:
        """Gather the evidence and write it."""
        models = [step.result.stage for step in (self.baseline, self.rewritten, self.tuned)]
        others = [step.result for step in (self.measured, self.quality, self.throughput)]
        return context.run.stage(
            "report",
            lambda folder: self._write(context, folder),
            config={"title": self.title, "shipped": self.shipped.result.name},
            inputs=[self.found.result.stage, *models, *others],
        )

    def subjects(self) -> list[Subject]:
        """Give the rows: baseline, control, and each chosen model before and after fine-tuning."""
        tuned = self.tuned.result.checkpoints
        baseline = self.baseline.result.checkpoints[BASELINE]
        subjects = [
            Subject(name=BASELINE, stage="trained", checkpoint=baseline),
            Subject(name="control", stage="after-finetune", checkpoint=tuned["control"]),
        ]
        for name, checkpoint in self.rewritten.result.checkpoints.items():
            subjects.append(Subject(name=name, stage="before-finetune", checkpoint=checkpoint))
            subjects.append(Subject(name=name, stage="after-finetune", checkpoint=tuned[name]))
        return subjects

    def _write(self, context: Context, folder: str) -> None:
        name, histories = self.shipped.result.name, self.tuned.result.histories
        plan = Plan.load(storage.join(self.rewritten.result.checkpoints[name], "plan.json"))
        tried = self.found.result.stage
        known = Statistics(load_moments(tried.file(MOMENTS)), load_sensitivity(tried.file(SENSITIVITY)))
        compressed, kept = layers(known, plan), summary(histories[name])
        base = frame(
            context.run,
            self.baseline.result,
            context.manifest,
            self.throughput.result,
            title=self.title,
            config=self.config,
        )
        content = {
            **base,
            "rows": rows_of(
                self.quality.result,
                self.throughput.result,
                self.subjects(),
                row_notes(histories, "control"),
            ),
            "shipped": {
                "name": name,
                "stage": "after-finetune",
                "checkpoint": storage.join(context.run.path, "checkpoint"),
                "reason": f"{self.shipped.result.reason}; kept {kept['kept']}: {kept['reason']}",
            },
            "sweep": points(
                read_points(tried),
                storage.read_json(self.measured.result.file(POINTS), list[Scored], fix=STAGE_AGAIN),
            ),
            "layers": compressed,
            "finetuning": curves("both", self.tuned.result, self.tuned.recipe),
            "tables": tables(self.baseline.result.checkpoints[BASELINE], known, plan),
            "notes": [
                *base["notes"],
                "Names: afm-r64-d2 has rank 64 in the linear layers and embedding dimension 2, full is as it "
                "was. The factors of weighted models are those with the least change of the logit, to first "
                "order; budget-r64-d2 has such factors, no more bytes than that pair of ranks, and the ranks "
                "(each field its own, unless --field-ranks is uniform) for which the predicted change is "
                "least.",
                "Linear layers and tables were compressed at once, and there was one round of fine-tuning, "
                f"as in the second one of a compression without --sweep: {in_words(self.tuned.recipe)}. What "
                "is kept is the state with the best validation AUC, the one before fine-tuning included.",
                *plan_notes(plan),
                *degenerate_layers(compressed),
            ],
        }
        report.write_report(content, folder)


def points(
    scored: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The points as the report shows them, each with whether none beats it (SVD apart).

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
