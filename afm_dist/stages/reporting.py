"""The report of the paper's order: gathering the evidence and writing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from afm_dist import report, storage
from afm_dist.compression.plan import Plan
from afm_dist.compression.variant import Variant
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.report.degenerate_words import degenerate_layers
from afm_dist.runs.run import Stage
from afm_dist.search.search import leader_of
from afm_dist.stages.compression import RewriteLinears, RewriteTables, TableStatistics
from afm_dist.stages.evaluation import Subject, rows_of
from afm_dist.stages.report_parts import (
    curves,
    frame,
    layers,
    plan_notes,
    row_notes,
    tables,
)
from afm_dist.stages.searching import MOMENTS, SENSITIVITY, SearchPlans
from afm_dist.stages.shipping import ShippedModel
from afm_dist.stages.training import BASELINE, SCRATCH, SCRATCH_WORDS, FineTune, Models
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.sensitivity_file import load_sensitivity
from afm_dist.statistics.statistics import Statistics
from afm_dist.training.history import summary
from afm_dist.training.wording import describe


@dataclass(kw_only=True)
class WriteReport(Step[Stage]):
    """Writes ``report/`` of the paper's order: ``report.json``, ``report.md`` and ``report.html``.

    Attributes:
        title: Of the report.
        config: Of the job.
        baseline: The uncompressed model.
        found: The plans.
        low_rank: Models with compressed linear layers, before fine-tuning.
        tuned: The same after the first round.
        statistics: Moments of their tables.
        narrow: Models with compressed tables, before fine-tuning.
        final: The same after the second round.
        shipped: What ships.
        scratch: The small model trained from scratch; None: there is none.
        quality: What was measured.
        throughput: The same.
    """

    title: str
    config: Mapping[str, Any]
    baseline: Step[Models]
    found: SearchPlans
    low_rank: RewriteLinears
    tuned: FineTune
    statistics: TableStatistics
    narrow: RewriteTables
    final: FineTune
    shipped: Step[ShippedModel]
    scratch: Step[Models] | None
    quality: Step[Stage] = field(init=False)
    throughput: Step[Stage] = field(init=False)

    def work(self, context: Context) -> Stage:
        """Gather the evidence and write it."""
        models = [self.baseline, self.low_rank, self.tuned, self.narrow, self.final]
        models += [] if self.scratch is None else [self.scratch]
        stages = [step.result.stage for step in models]
        stages += [self.found.result.stage, self.low_rank.statistics.result, self.statistics.result]
        stages += [self.quality.result, self.throughput.result]
        stages += [step.result for step in (self._linear_sensitivity, self._sensitivity) if step is not None]
        return context.run.stage(
            "report",
            lambda folder: self._write(context, folder),
            config={
                "title": self.title,
                "shipped": self.shipped.result.name,
                "reason": self.shipped.result.reason,
            },
            inputs=stages,
        )

    def subjects(self) -> list[Subject]:
        """Give the rows: baseline, controls, the variants, ablations, then from scratch."""
        before = self.low_rank.result.checkpoints | self.narrow.result.checkpoints
        after = self.tuned.result.checkpoints | self.final.result.checkpoints
        baseline = self.baseline.result.checkpoints[BASELINE]
        subjects = [Subject(name=BASELINE, stage="trained", checkpoint=baseline)]
        for name in (self.tuned.control, self.final.control):
            subjects.append(Subject(name=name, stage="after-finetune", checkpoint=after[name]))
        leading = [name for variant in self.narrow.variants for name in (variant.linears, variant.tables)]
        for name in [*leading, *(name for name in before if name not in leading)]:
            subjects.append(Subject(name=name, stage="before-finetune", checkpoint=before[name]))
            subjects.append(Subject(name=name, stage="after-finetune", checkpoint=after[name]))
        if self.scratch is not None:
            checkpoint = self.scratch.result.checkpoints[SCRATCH]
            subjects.append(Subject(name=SCRATCH, stage="trained", checkpoint=checkpoint))
        return subjects

    @property
    def _structure(self) -> str:
        """The row of the model whose structure is trained from scratch."""
        return next(own.tables for own in self.narrow.variants if own.from_scratch)

    @property
    def _variant(self) -> Variant:
        """The variant that ships."""
        (found,) = (own for own in self.narrow.variants if own.tables == self.shipped.result.name)
        return found

    @property
    def _sensitivity(self) -> Step[Stage] | None:
        return self.narrow.sensitivity.get(self._variant.name)

    @property
    def _linear_sensitivity(self) -> Step[Stage] | None:
        return self.low_rank.sensitivity if self._variant.needs_sensitivity else None

    def _write(self, context: Context, folder: str) -> None:
        report.write_report(self._content(context), folder)

    def _content(self, context: Context) -> dict[str, Any]:
        run, variant = context.run, self._variant
        tuned = self.tuned.result.histories | self.final.result.histories
        linear_plan, table_plan = (
            _plan(self.low_rank.result, variant.linears),
            _plan(self.narrow.result, variant.tables),
        )
        linears = _known(self.low_rank.moments_of(variant).file(MOMENTS), self._linear_sensitivity)
        moments = self.statistics.result.file(self.statistics.file_of(variant))
        tables_known = _known(moments, self._sensitivity)
        compressed = [*layers(linears, linear_plan), *layers(tables_known, table_plan)]
        notes = row_notes(tuned, self.tuned.control) | self._scratch_note()
        rows = rows_of(self.quality.result, self.throughput.result, self.subjects(), notes)
        chosen = tuned[variant.tables]
        base = frame(
            run,
            self.baseline.result,
            context.manifest,
            self.throughput.result,
            title=self.title,
            config=self.config,
        )
        return {
            **base,
            "rows": [row for row in rows if not self._is_ablation(row["name"])],
            "shipped": {
                "name": variant.tables,
                "stage": "after-finetune",
                "checkpoint": storage.join(run.path, "checkpoint"),
                "reason": f"{self.shipped.result.reason}; kept {summary(chosen)['kept']}: "
                f"{summary(chosen)['reason']}",
            },
            "layers": compressed,
            "finetuning": [
                *curves("mlp", self.tuned.result, self.tuned.recipe),
                *curves("embedding", self.final.result, self.final.recipe),
            ],
            "relu_modes": self._relu_modes(rows),
            "tables": tables(self.baseline.result.checkpoints[BASELINE], tables_known, table_plan),
            "notes": [
                *base["notes"],
                *variant_notes(self.narrow.variants),
                *([] if self.scratch is None else [SCRATCH_WORDS.format(of=self._structure)]),
                self._finetuning_note(),
                *self.found.search.notes(self.found.result.stage, leader_of(variant)),
                *plan_notes(table_plan),
                *degenerate_layers(compressed),
            ],
        }

    def _finetuning_note(self) -> str:
        return (
            f"Fine-tuning after the MLP: {describe(self.tuned.recipe)}. After the tables: "
            f"{describe(self.final.recipe)}. In both, what is kept of each model, the control included, is "
            "the state with the best validation AUC; the one before fine-tuning competes, so by validation "
            "fine-tuning is never worse than none."
        )

    def _scratch_note(self) -> dict[tuple[str, str], dict[str, Any]]:
        if self.scratch is None:
            return {}
        history = self.scratch.result.histories[SCRATCH]
        note = f"kept: {summary(history)['kept']}"
        return {(SCRATCH, "trained"): {"validation_auc": history.best.validation_auc, "note": note}}

    def _is_ablation(self, name: str) -> bool:
        return name.startswith(f"{self.narrow.variants[0].linears}-")

    def _relu_modes(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if not self.low_rank.settings:
            return []
        first = self.narrow.variants[0].linears
        entries = _plan(self.low_rank.result, first).entries
        if not entries:
            return []
        chosen, modes = getattr(entries[0].config, "activation", None), []
        for row in rows:
            if row["name"] == first or self._is_ablation(row["name"]):
                mode = row["name"].removeprefix(first).removeprefix("-") or chosen
                keys = ("stage", "auc", "log_loss", "validation_auc")
                modes.append(
                    {"activation": mode, "chosen": mode == chosen, **{key: row[key] for key in keys}}
                )
        return modes


def _known(moments: str, sensitivity: Step[Stage] | None) -> Statistics:
    return Statistics(
        load_moments(moments),
        None if sensitivity is None else load_sensitivity(sensitivity.result.file(SENSITIVITY)),
    )


def variant_notes(variants: Sequence[Variant]) -> list[str]:
    """Describe what was compared, where that is not obvious."""
    notes = []
    for leader in (own.name for own in variants):
        names = [own.name for own in variants if own.leader == leader]
        if names:
            listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
            notes.append(
                f"The {listed} rows have the ranks, the ReLU mode and the fine-tuning of the "
                f"{leader} rows; only the factors differ."
            )
    # What a reference with the sizes of a leader is, the first note has said.
    if any(own.leader is None or not own.reference for own in variants[1:]):
        notes += [own.words for own in variants]
    return notes


def _plan(models: Models, name: str) -> Plan:
    return Plan.load(storage.join(models.checkpoints[name], "plan.json"))
