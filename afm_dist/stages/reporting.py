"""The last stages: gathering the evidence and writing the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afm_dist import report, storage
from afm_dist.compression.plan import Plan
from afm_dist.dataset.manifest import Manifest
from afm_dist.methods.low_rank.ranks import low_rank
from afm_dist.report import read_report
from afm_dist.report.degenerate_words import degenerate_layers
from afm_dist.runs.run import STAGE_AGAIN, Run, Stage
from afm_dist.runtime import console
from afm_dist.stages.budget import EXPLAINED, PREDICTED, RANKS, ChosenRanks, Ranks
from afm_dist.stages.compression import COMPARED, MOMENTS, SENSITIVITY
from afm_dist.stages.evaluation import Subject, rows_of
from afm_dist.stages.methods import AFM, SCRATCH, Methods
from afm_dist.stages.report_parts import (
    curves,
    frame,
    layers,
    plan_notes,
    row_notes,
    tables,
)
from afm_dist.stages.training import Models
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.sensitivity_file import load_sensitivity
from afm_dist.statistics.statistics import Statistics
from afm_dist.training.history import summary
from afm_dist.training.recipe import Recipe
from afm_dist.training.wording import in_words


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a report is made of: the run's stages and what they left.

    Attributes:
        manifest: The dataset.
        baseline: The uncompressed model.
        linear_statistics: Moments of the MLP's layers.
        linear_rewrite: Low-rank models before fine-tuning.
        linear_finetune: The first round.
        table_statistics: Moments of the fields.
        table_rewrite: Models with narrow tables before fine-tuning.
        table_finetune: The second round.
        linear_recipe: Of the first round.
        table_recipe: Of the second round.
        subjects: Rows of the table.
        quality: The ``evaluate`` stage.
        throughput: The ``throughput`` stage.
        ablation: Whether the ReLU modes were compared.
        ranks: Those of a budget; None: there was none.
        methods: What the run compares.
        scratch: The small model trained from scratch; None: there was none.
        table_sensitivity: Of the logit to the rows of AFM's tables; None: not measured.
    """

    manifest: Manifest
    baseline: Models
    linear_statistics: Stage
    linear_rewrite: Models
    linear_finetune: Models
    table_statistics: Stage
    table_rewrite: Models
    table_finetune: Models
    linear_recipe: Recipe
    table_recipe: Recipe
    subjects: Sequence[Subject]
    quality: Stage
    throughput: Stage
    ablation: bool
    ranks: Ranks | None = None
    methods: Methods = COMPARED
    scratch: Models | None = None
    table_sensitivity: Stage | None = None

    @property
    def stages(self) -> list[Stage]:
        """Every stage the report reads."""
        return [
            self.baseline.stage,
            self.linear_statistics,
            self.linear_rewrite.stage,
            self.linear_finetune.stage,
            self.table_statistics,
            self.table_rewrite.stage,
            self.table_finetune.stage,
            self.quality,
            self.throughput,
            *([] if self.ranks is None else [self.ranks.stage]),
            *([] if self.scratch is None else [self.scratch.stage]),
            *([] if self.table_sensitivity is None else [self.table_sensitivity]),
        ]


def subjects_of(
    baseline: Models,
    rewritten: Models,
    tuned: Models,
    narrow: Models,
    final: Models,
    methods: Methods,
    scratch: Models | None,
) -> list[Subject]:
    """The rows of the table, in its order: baseline, controls, the methods, ablations, then from scratch."""
    before = rewritten.checkpoints | narrow.checkpoints
    after = tuned.checkpoints | final.checkpoints
    subjects = [Subject(name="baseline", stage="trained", checkpoint=baseline.checkpoints["baseline"])]
    for name in ("control-mlp", "control"):
        subjects.append(Subject(name=name, stage="after-finetune", checkpoint=after[name]))
    leading = [name for method in methods.factored for name in (method.linears, method.tables)]
    for name in [*leading, *(name for name in before if name not in leading)]:
        subjects.append(Subject(name=name, stage="before-finetune", checkpoint=before[name]))
        subjects.append(Subject(name=name, stage="after-finetune", checkpoint=after[name]))
    if scratch is not None:
        subjects.append(Subject(name=SCRATCH, stage="trained", checkpoint=scratch.checkpoints[SCRATCH]))
    return subjects


def write_report(run: Run, evidence: Evidence, *, title: str, config: Mapping[str, Any]) -> Stage:
    """Write ``report/`` with ``report.json``, ``report.md`` and ``report.html``."""

    def work(folder: str) -> None:
        report.write_report(_content(run, evidence, title, config), folder)

    return run.stage("report", work, config={"title": title}, inputs=evidence.stages)


def say_result(run: Run, written: Stage, shipped: Stage) -> None:
    """Print the table and where everything is."""
    console.out.print(report.table(read_report(written.file("report.json"))))
    if not run.redone:
        console.say("every stage is up to date: nothing was done")
    console.say(f"checkpoint: {shipped.path}")
    console.say(f"report:     {written.file('report.html')}")


def _content(run: Run, evidence: Evidence, title: str, config: Mapping[str, Any]) -> dict[str, Any]:
    tuned = evidence.linear_finetune.histories | evidence.table_finetune.histories
    table_plan = _plan(evidence.table_rewrite, AFM.tables)
    felt = evidence.table_sensitivity
    table_moments = Statistics(
        load_moments(evidence.table_statistics.file(MOMENTS)),
        None if felt is None else load_sensitivity(felt.file(SENSITIVITY)),
    )
    compressed = [
        *layers(
            Statistics(load_moments(evidence.linear_statistics.file(MOMENTS))),
            _plan(evidence.linear_rewrite, AFM.linears),
        ),
        *layers(table_moments, table_plan),
    ]
    notes = row_notes(tuned, "control-mlp") | _scratch_note(evidence.scratch)
    rows = rows_of(evidence.quality, evidence.throughput, evidence.subjects, notes)
    chosen = tuned[AFM.tables]
    base = frame(run, evidence.baseline, evidence.manifest, evidence.throughput, title=title, config=config)
    return {
        **base,
        "rows": [row for row in rows if not _is_ablation(row["name"])],
        "shipped": {
            "name": AFM.tables,
            "stage": "after-finetune",
            "checkpoint": storage.join(run.path, "checkpoint"),
            "reason": f"kept {summary(chosen)['kept']}: {summary(chosen)['reason']}",
        },
        "layers": compressed,
        "finetuning": [
            *curves("mlp", evidence.linear_finetune, evidence.linear_recipe),
            *curves("embedding", evidence.table_finetune, evidence.table_recipe),
        ],
        "relu_modes": _relu_modes(evidence, rows),
        "tables": tables(evidence.baseline.checkpoints["baseline"], table_moments, table_plan),
        "notes": [
            *base["notes"],
            *evidence.methods.notes,
            _finetuning_note(evidence),
            *([] if evidence.ranks is None else [_budget_note(evidence.ranks)]),
            *plan_notes(table_plan),
            *degenerate_layers(compressed),
        ],
    }


def _finetuning_note(evidence: Evidence) -> str:
    return (
        f"Fine-tuning after the MLP: {in_words(evidence.linear_recipe)}. After the tables: "
        f"{in_words(evidence.table_recipe)}. In both, what is kept of each model, the control included, is "
        "the state with the best validation AUC; the one before fine-tuning competes, so by validation "
        "fine-tuning is never worse than none."
    )


def _budget_note(ranks: Ranks) -> str:
    chosen = storage.read_json(ranks.stage.file(RANKS), ChosenRanks, fix=STAGE_AGAIN)
    (as_predicted,) = [one for one in chosen["tried"] if one["name"] == PREDICTED]
    errors = ", ".join(f"{name} {math.sqrt(error):.2g}" for name, error in as_predicted["errors"].items())
    predicted = (
        f"the least predicted change of the logit (root mean square, by module: {errors}), to first order, "
        "before fine-tuning and without what a ReLU between factors cuts"
    )
    scored = [one for one in chosen["tried"] if "validation_log_loss" in one]
    if not scored:
        return f"Ranks for a budget of {chosen['budget']:,} bytes: those with {predicted}."
    losses = ", ".join(
        f"{one['name']} {one['validation_log_loss']:.5f} (AUC {one['validation_auc']:.4f})" for one in scored
    )
    explained = [f"{PREDICTED} has {predicted}"]
    explained += [f"{name} {EXPLAINED[name]}" for one in scored if (name := one["name"]) in EXPLAINED]
    return (
        f"Ranks for a budget of {chosen['budget']:,} bytes: {chosen['chosen']}, which of {len(scored)} "
        f"allocations has the least log loss on the validation split before fine-tuning: {losses}. "
        f"{'; '.join(explained)}."
    )


def _is_ablation(name: str) -> bool:
    return name.startswith("afm-mlp-")


def _scratch_note(scratch: Models | None) -> dict[tuple[str, str], dict[str, Any]]:
    if scratch is None:
        return {}
    history = scratch.histories[SCRATCH]
    note = f"kept: {summary(history)['kept']}"
    return {(SCRATCH, "trained"): {"validation_auc": history.best.validation_auc, "note": note}}


def _plan(models: Models, name: str) -> Plan:
    return Plan.load(storage.join(models.checkpoints[name], "plan.json"))


def _relu_modes(evidence: Evidence, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not evidence.ablation:
        return []
    entries = _plan(evidence.linear_rewrite, "afm-mlp").entries
    if not entries:
        return []
    chosen, modes = low_rank(entries[0]).activation, []
    for row in rows:
        if row["name"] == "afm-mlp" or _is_ablation(row["name"]):
            mode = row["name"].removeprefix("afm-mlp").removeprefix("-") or chosen
            keys = ("stage", "auc", "log_loss", "validation_auc")
            modes.append({"activation": mode, "chosen": mode == chosen, **{key: row[key] for key in keys}})
    return modes
