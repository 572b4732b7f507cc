"""The report of a sweep: every rank before fine-tuning, and the few models that were fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afm_dist import report, storage
from afm_dist.compression.plan import Plan
from afm_dist.dataset.manifest import Manifest
from afm_dist.report.degenerate_words import degenerate_layers
from afm_dist.runs.run import STAGE_AGAIN, Run, Stage
from afm_dist.stages.compression import MOMENTS, SENSITIVITY
from afm_dist.stages.evaluation import Subject, rows_of
from afm_dist.stages.report_parts import (
    curves,
    frame,
    layers,
    plan_notes,
    row_notes,
    tables,
)
from afm_dist.stages.scoring import Scored
from afm_dist.stages.sweep import BASELINE, NO_LOSS, OURS, POINTS, front_of
from afm_dist.stages.training import Models
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.sensitivity_file import load_sensitivity
from afm_dist.statistics.statistics import Statistics
from afm_dist.training.history import summary
from afm_dist.training.recipe import Recipe
from afm_dist.training.wording import in_words


@dataclass(frozen=True, kw_only=True)
class SweepEvidence:
    """Everything the report of a sweep is made of.

    Attributes:
        manifest: The dataset.
        baseline: The uncompressed model.
        tried: The stage that scored every rank on the validation split.
        measured: The same on the test split.
        chosen: Models before fine-tuning.
        tuned: The same after it, with ``control``.
        recipe: Of the fine-tuning.
        subjects: Rows of the table.
        quality: The ``evaluate`` stage.
        throughput: The ``throughput`` stage.
        shipped: Name of the model that became the result.
    """

    manifest: Manifest
    baseline: Models
    tried: Stage
    measured: Stage
    chosen: Models
    tuned: Models
    recipe: Recipe
    subjects: Sequence[Subject]
    quality: Stage
    throughput: Stage
    shipped: str


def sweep_subjects(baseline: Models, chosen: Models, tuned: Models) -> list[Subject]:
    """The rows of the table: baseline, control, and each chosen model before and after fine-tuning."""
    subjects = [
        Subject(name="baseline", stage="trained", checkpoint=baseline.checkpoints["baseline"]),
        Subject(name="control", stage="after-finetune", checkpoint=tuned.checkpoints["control"]),
    ]
    for name, checkpoint in chosen.checkpoints.items():
        subjects.append(Subject(name=name, stage="before-finetune", checkpoint=checkpoint))
        subjects.append(Subject(name=name, stage="after-finetune", checkpoint=tuned.checkpoints[name]))
    return subjects


def write_sweep_report(run: Run, evidence: SweepEvidence, *, title: str, config: Mapping[str, Any]) -> Stage:
    """Write ``report/`` with ``report.json``, ``report.md`` and ``report.html``."""
    stages = [
        evidence.baseline.stage,
        evidence.tried,
        evidence.measured,
        evidence.chosen.stage,
        evidence.tuned.stage,
        evidence.quality,
        evidence.throughput,
    ]
    return run.stage(
        "report",
        lambda folder: _write(run, evidence, title, config, folder),
        config={"title": title, "shipped": evidence.shipped},
        inputs=stages,
    )


def _write(run: Run, evidence: SweepEvidence, title: str, config: Mapping[str, Any], folder: str) -> None:
    histories, name = evidence.tuned.histories, evidence.shipped
    plan = Plan.load(storage.join(evidence.chosen.checkpoints[name], "plan.json"))
    known = Statistics(
        load_moments(evidence.tried.file(MOMENTS)), load_sensitivity(evidence.tried.file(SENSITIVITY))
    )
    compressed = layers(known, plan)
    base = frame(run, evidence.baseline, evidence.manifest, evidence.throughput, title=title, config=config)
    content = {
        **base,
        "rows": rows_of(
            evidence.quality, evidence.throughput, evidence.subjects, row_notes(histories, "control")
        ),
        "shipped": {
            "name": name,
            "stage": "after-finetune",
            "checkpoint": storage.join(run.path, "checkpoint"),
            "reason": _reason(evidence),
        },
        "sweep": points(
            *(
                storage.read_json(stage.file(POINTS), list[Scored], fix=STAGE_AGAIN)
                for stage in (evidence.tried, evidence.measured)
            )
        ),
        "layers": compressed,
        "finetuning": curves("both", evidence.tuned, evidence.recipe),
        "tables": tables(evidence.baseline.checkpoints["baseline"], known, plan),
        "notes": [
            *base["notes"],
            "Names: afm-r64-d2 has rank 64 in the linear layers and embedding dimension 2, full is as it "
            "was. The factors of weighted models are those with the least change of the logit, to first "
            "order; budget-r64-d2 has such factors, no more bytes than that pair of ranks, and the ranks "
            "(each field its own, unless --field-ranks is uniform) for which the predicted change is least.",
            "Linear layers and tables were compressed at once, and there was one round of fine-tuning, as in "
            f"the second one of a compression without --sweep: {in_words(evidence.recipe)}. What is kept is "
            "the state with the best validation AUC, the one before fine-tuning included.",
            *plan_notes(plan),
            *degenerate_layers(compressed),
        ],
    }
    report.write_report(content, folder)


def _reason(evidence: SweepEvidence) -> str:
    """Why this one ships."""
    histories = evidence.tuned.histories
    own, control = histories[evidence.shipped].best, histories["control"].best
    difference = own.validation_auc - control.validation_auc
    why = (
        "the smallest that was fine-tuned and is as good as the control on the validation split"
        if difference >= -NO_LOSS
        else "of those that were fine-tuned the best on the validation split; none is as good as the control"
    )
    history = summary(histories[evidence.shipped])
    return f"{why} (AUC {difference:+.4f}); kept {history['kept']}: {history['reason']}"


def points(
    scored: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The points as the report shows them, each with whether none beats it (SVD apart).

    Args:
        scored: On the validation split, by which none beats it.
        measured: The same on the test split.
    """
    test = {point["name"]: {key: point[key] for key in ("auc", "log_loss")} for point in measured}
    ours = [point for point in scored if point["method"] in (BASELINE, *OURS)]
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
