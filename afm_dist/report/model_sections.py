"""Sections about training: fine-tuning, activation between the factors, the baseline's training."""

from __future__ import annotations

from functools import partial

from afm_dist.report import text
from afm_dist.report.looks import marked
from afm_dist.report.plots import curves
from afm_dist.report.schema import CurvePoint, FineTuningRecord, Report, TrainingPoint
from afm_dist.report.summary import baseline_of
from afm_dist.report.view import (
    Beside,
    Block,
    Folded,
    Grid,
    Line,
    Paragraph,
    Plot,
    Span,
    grid,
    numbers,
    texts,
)

FOLDED_FROM = 12
PLOTTED_FROM = 3
ROUNDS = {
    "mlp": "after compressing the linear layers",
    "before": "of the uncompressed model, before compressing",
    "embedding": "after compressing the embeddings",
    "both": "after compressing linear layers and embeddings",
}


def finetuning(report: Report) -> list[Block]:
    """Show the curves of each round, and what was kept of each candidate."""
    candidates = report.get("finetuning")
    if not candidates:
        return []
    baseline = baseline_of(report["rows"]).get("validation_auc")
    level = "" if baseline is None else " Dashed: the baseline as trained."
    plots = [
        Plot(
            partial(
                curves.validation_auc,
                [one for one in candidates if one["round"] == part],
                baseline,
                f"curve-{index}",
            ),
            f"Validation AUC {ROUNDS.get(part, part)}",
            f"Step 0 is before fine-tuning. The ring marks what was kept.{level}",
        )
        for index, part in enumerate(dict.fromkeys(one["round"] for one in candidates))
    ]
    return [Beside(plots), _kept(candidates)]


def _kept(candidates: list[FineTuningRecord]) -> Grid:
    keys = list(dict.fromkeys(key for one in candidates for key in one.get("recipe", {})))
    return grid(
        "What was kept of each candidate, chosen on the validation split, and its recipe",
        [
            *texts("Model", "Kept", "Why"),
            *numbers("Step", "Validation AUC", *(key.replace("_", " ") for key in keys)),
        ],
        [
            [
                marked(one["name"]),
                one.get("kept", "").replace("-", "\N{NON-BREAKING HYPHEN}"),
                one.get("reason", ""),
                text.count(one["kept_step"]),
                text.score(curves.kept(one)["validation_auc"]),
                *(_setting(one.get("recipe", {}).get(key)) for key in keys),
            ]
            for one in candidates
        ],
    )


def _setting(value: object) -> str:
    """Show a setting; None: as the model was built, so nothing was set."""
    if value is None:
        return text.NONE
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def relu_modes(report: Report) -> list[Block]:
    """Show the ablation of what stands between the two factors of a linear layer."""
    modes = report.get("relu_modes")
    if not modes:
        return []
    lines = [
        Line(
            cells=[
                Span(text=mode["activation"], code=True, badge="chosen" if mode.get("chosen") else ""),
                text.FINE_TUNING[mode["stage"]],
                text.score(mode.get("validation_auc")),
                text.measured(mode["auc"]),
                text.measured(mode["log_loss"]),
            ],
            strong=mode.get("chosen", False),
        )
        for mode in modes
    ]
    columns = [*texts("Activation", "Fine-tuning"), *numbers("Validation AUC", "AUC", "Log loss")]
    words = (
        "A linear layer becomes two. “none” puts nothing between them; “plain” a ReLU, as published; "
        "“shifted” a ReLU moved below the bulk of the data, so that it changes little before fine-tuning. "
        "The chosen mode is the option --activation of the run; the others are here to compare."
    )
    return [Beside([Grid("Quality by activation", columns, lines), Paragraph(words)])]


def training(report: Report) -> list[Block]:
    """Show how the baseline was trained."""
    points = report.get("training")
    if not points:
        return []
    columns = numbers("Epoch", "Step", "Training loss", "Validation AUC", "Validation log loss")
    table: Block = grid(
        "The uncompressed model by epoch",
        columns,
        [
            [
                str(point["epoch"]),
                text.count(point["step"]) if "step" in point else text.NONE,
                text.score(point.get("train_loss")),
                text.score(point.get("validation_auc")),
                text.score(point.get("validation_log_loss")),
            ]
            for point in points
        ],
    )
    if len(points) > FOLDED_FROM:
        table = Folded(f"All {len(points)} validations in numbers", [table])
    return [Beside([*_training_curve(points), table])]


def _training_curve(points: list[TrainingPoint]) -> list[Block]:
    curve: list[CurvePoint] = [
        {"step": point["step"], "validation_auc": point["validation_auc"]}
        for point in points
        if "step" in point and "validation_auc" in point
    ]
    if len(curve) < PLOTTED_FROM:
        return []
    best = max(curve, key=lambda point: point["validation_auc"])
    baseline: FineTuningRecord = {
        "name": "baseline",
        "round": "mlp",
        "kept_step": best["step"],
        "curve": curve,
    }
    draw = partial(curves.validation_auc, [baseline], None, "curve-training", whole=True)
    return [Plot(draw, "Validation AUC of the uncompressed model", "The ring marks the highest.")]
