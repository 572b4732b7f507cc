"""The report of models whose linear layers and tables were compressed at once, of a sweep or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from afm_dist import report, storage
from afm_dist.compression.variant import Variant
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.report.degenerate_words import degenerate_layers
from afm_dist.runs.run import STAGE_FIX, Stage
from afm_dist.search.grid import POINTS, read_points
from afm_dist.search.scoring import Scored
from afm_dist.search.search import leader_of
from afm_dist.stages.compression import RewriteAtOnce
from afm_dist.stages.evaluation import Subject, rows_of
from afm_dist.stages.report_parts import (
    curves,
    frame,
    layers,
    plan_notes,
    row_notes,
    tables,
)
from afm_dist.stages.reporting import variant_notes
from afm_dist.stages.scoring_points import SWEEP_NOTE, points
from afm_dist.stages.searching import SearchPlans
from afm_dist.stages.shipping import ShippedModel
from afm_dist.stages.training import BASELINE, SCRATCH, SCRATCH_WORDS, FineTune, Models
from afm_dist.training.history import summary
from afm_dist.training.wording import describe


@dataclass(kw_only=True)
class WriteReportAtOnce(Step[Stage]):
    """Writes ``report/``: ``report.json``, ``report.md`` and ``report.html``.

    Attributes:
        title: Of the report.
        config: Of the job.
        baseline: The uncompressed model.
        before: The round of fine-tuning that the uncompressed model had before it was compressed; None: none.
        found: The plans.
        rewritten: The models before fine-tuning.
        tuned: The same after it.
        shipped: What ships.
        measured: Of a sweep, what was tried, on the test split; None: it is no sweep.
        scratch: The small model trained from scratch; None: there is none.
        quality: What was measured.
        throughput: The same.
    """

    title: str
    config: Mapping[str, Any]
    baseline: Step[Models]
    before: FineTune | None = None
    found: SearchPlans
    rewritten: RewriteAtOnce
    tuned: FineTune
    shipped: Step[ShippedModel]
    measured: Step[Stage] | None = None
    scratch: Step[Models] | None = None
    quality: Step[Stage] = field(init=False)
    throughput: Step[Stage] = field(init=False)

    @property
    def models(self) -> list[Step[Models]]:
        """List what makes the models of the rows."""
        optional = [step for step in (self.before, self.scratch) if step is not None]
        return [self.baseline, *optional, self.rewritten, self.tuned]

    def work(self, context: Context) -> Stage:
        """Gather the evidence and write it."""
        others = [self.rewritten.known, self.rewritten.behind, self.measured, self.quality, self.throughput]
        return context.run.stage(
            "report",
            lambda folder: self._write(context, folder),
            config={
                "title": self.title,
                "shipped": self.shipped.result.name,
                "reason": self.shipped.result.reason,
            },
            inputs=[
                self.found.result.stage,
                *(step.result.stage for step in self.models),
                *(step.result for step in others if step is not None),
            ],
        )

    def subjects(self) -> list[Subject]:
        """Give the rows: baseline, controls, each model before and after fine-tuning, then from scratch."""
        tuned = self.tuned.result.checkpoints
        baseline = self.baseline.result.checkpoints[BASELINE]
        subjects = [Subject(name=BASELINE, stage="trained", checkpoint=baseline)]
        for step in (self.before, self.tuned):
            if step is not None:
                checkpoint = step.result.checkpoints[step.control]
                subjects.append(Subject(name=step.control, stage="after-finetune", checkpoint=checkpoint))
        for name, checkpoint in self.rewritten.result.checkpoints.items():
            subjects.append(Subject(name=name, stage="before-finetune", checkpoint=checkpoint))
            subjects.append(Subject(name=name, stage="after-finetune", checkpoint=tuned[name]))
        if self.scratch is not None:
            checkpoint = self.scratch.result.checkpoints[SCRATCH]
            subjects.append(Subject(name=SCRATCH, stage="trained", checkpoint=checkpoint))
        return subjects

    @property
    def count(self) -> int:
        """Count the rows, as far as that is known before."""
        return 2 + 2 * self.rewritten.count + len(self.models) - 3

    def _write(self, context: Context, folder: str) -> None:
        name, histories = self.shipped.result.name, self.tuned.result.histories
        if self.before is not None:
            histories = self.before.result.histories | histories
        variant, plan = self.rewritten.plans()[name]
        known = self.rewritten.known_of(variant, context.manifest)
        compressed, kept = layers(known, plan), summary(histories[name])
        baseline = self.baseline.result
        base = frame(
            context.run,
            baseline,
            context.manifest,
            self.throughput.result,
            title=self.title,
            config=self.config,
        )
        first = self.tuned if self.before is None else self.before
        notes = row_notes(histories, first.control)
        if self.scratch is not None:
            best = self.scratch.result.histories[SCRATCH].best
            notes[SCRATCH, "trained"] = {"validation_auc": best.validation_auc}
        content = {
            **base,
            "rows": rows_of(self.quality.result, self.throughput.result, self.subjects(), notes),
            "shipped": {
                "name": name,
                "stage": "after-finetune",
                "checkpoint": storage.join(context.run.path, "checkpoint"),
                "reason": f"{self.shipped.result.reason}; kept {kept['kept']}: {kept['reason']}",
            },
            **self._sweep(),
            "layers": compressed,
            "finetuning": [
                *([] if self.before is None else curves("before", self.before.result, self.before.recipe)),
                *curves("both", self.tuned.result, self.tuned.recipe),
            ],
            "tables": tables(baseline.checkpoints[BASELINE], known, plan),
            "notes": [
                *base["notes"],
                *([] if self.measured is None else [SWEEP_NOTE]),
                *variant_notes(self.rewritten.variants or ()),
                *self._scratch_words(self.rewritten.variants or ()),
                self._schedule(),
                *self.found.search.notes(
                    self.found.result.stage, name if variant is None else leader_of(variant)
                ),
                *plan_notes(plan),
                *degenerate_layers(compressed),
            ],
        }
        report.write_report(content, folder)

    def _sweep(self) -> dict[str, Any]:
        if self.measured is None:
            return {}
        measured = storage.read_json(self.measured.result.file(POINTS), list[Scored], fix=STAGE_FIX)
        return {"sweep": points(read_points(self.found.result.stage), measured)}

    def _scratch_words(self, variants: Sequence[Variant]) -> list[str]:
        return (
            []
            if self.scratch is None
            else [SCRATCH_WORDS.format(of=next(own.tables for own in variants if own.from_scratch))]
        )

    def _schedule(self) -> str:
        once = (
            f"Linear layers and tables were compressed at once, and there was one round of fine-tuning after "
            f"it: {describe(self.tuned.recipe)}. What is kept is the state with the best validation AUC, the "
            "one before fine-tuning included."
        )
        if self.before is None:
            return once
        return (
            "Schedule after-control: the uncompressed model had a round of fine-tuning before it was "
            f"compressed (control-mlp; {describe(self.before.recipe)}). {once} The control had both rounds."
        )
