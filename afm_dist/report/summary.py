"""What the rows amount to: their order, the fair comparison of each, the headline, the commands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from afm_dist.report import text
from afm_dist.report.looks import UNCOMPRESSED, in_order, method_of
from afm_dist.report.schema import STAGES, Command, Report, Row

SAME = 0.005
NO_AUC = (
    "The AUC is undefined on the test split, which has rows of one label only, or none; models were compared "
    "on the validation split."
)

Scored = TypeVar("Scored", bound=Mapping[str, Any])


def ordered(rows: list[Row]) -> list[Row]:
    """Sort the rows by method, as looks are sorted; within each by round, then by stage."""
    methods = in_order(method_of(row["name"]) for row in rows)
    return sorted(
        rows,
        key=lambda row: (
            methods.index(method_of(row["name"])),
            not _is_mlp(row),
            row["name"],
            STAGES.index(row["stage"]),
        ),
    )


def find(rows: list[Row], name: str, stage: str | None = None) -> Row | None:
    """Find the row of that name; of several, the one of the latest stage."""
    found = [row for row in ordered(rows) if row["name"] == name and stage in (None, row["stage"])]
    return found[-1] if found else None


def baseline_of(rows: list[Row]) -> Row:
    """Find the uncompressed model as it was trained."""
    row = find(rows, "baseline", "trained")
    assert row is not None, "validated reports have a baseline"
    return row


def control_of(rows: list[Row], row: Row) -> Row | None:
    """Find the uncompressed model after as many rounds of fine-tuning as ``row`` has had.

    A compressed model that was not fine-tuned at all has the baseline as its control.
    """
    if method_of(row["name"]) in UNCOMPRESSED or row["stage"] == "trained":
        return None
    rounds = _rounds(rows, row)
    if rounds == 0:
        return baseline_of(rows)
    controls = [
        row for row in rows if method_of(row["name"]) == "control" and row["stage"] == "after-finetune"
    ]
    return next((control for control in controls if _rounds(rows, control) == rounds), None)


def _is_mlp(row: Row) -> bool:
    return row["name"].endswith("-mlp")


def _rounds(rows: list[Row], row: Row) -> int:
    """How often the model was fine-tuned: the MLP's round comes first, if this run has one."""
    earlier = 0 if _is_mlp(row) else int(any(_is_mlp(other) for other in rows))
    return earlier + int(row["stage"] == "after-finetune")


def scored(rows: Sequence[Scored]) -> list[Scored]:
    """Select those whose AUC is defined."""
    return [row for row in rows if row["auc"] is not None]


def auc_of(row: Mapping[str, Any]) -> float:
    """Give the AUC of one of those that are ``scored``."""
    auc: float = row["auc"]
    return auc


def auc_difference(row: Mapping[str, Any], other: Mapping[str, Any] | None) -> float | None:
    """Subtract the AUC of another row; None where there is none, or one of the two is undefined."""
    if other is None or row["auc"] is None or other["auc"] is None:
        return None
    return auc_of(row) - auc_of(other)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What the shipped model gains and costs.

    Attributes:
        shipped: Its row.
        baseline: The uncompressed model as trained.
        control: The uncompressed model with the same amount of fine-tuning; None without one.
        size_ratio: Bytes of the baseline over bytes of the shipped model.
        to_baseline: AUC minus the baseline's; None where it is undefined, as the next two.
        to_control: AUC minus the control's.
        to_bayes: The best possible AUC minus the shipped model's, where it is known.
    """

    shipped: Row
    baseline: Row
    control: Row | None
    size_ratio: float
    to_baseline: float | None
    to_control: float | None
    to_bayes: float | None


def headline(report: Report) -> Headline:
    """Find the headline figures in the rows."""
    rows = report["rows"]
    shipped = find(rows, report["shipped"]["name"], report["shipped"]["stage"])
    assert shipped is not None, "validated reports ship one of their rows"
    baseline, control = baseline_of(rows), control_of(rows, shipped)
    data = report.get("data")
    bayes = data.get("bayes_auc") if data else None
    return Headline(
        shipped=shipped,
        baseline=baseline,
        control=control,
        size_ratio=baseline["bytes"] / shipped["bytes"],
        to_baseline=auc_difference(shipped, baseline),
        to_control=auc_difference(shipped, control),
        to_bayes=None if bayes is None or shipped["auc"] is None else bayes - shipped["auc"],
    )


def sentence(figures: Headline) -> str:
    """Give the headline as one sentence."""
    shipped = figures.shipped
    if shipped["name"] == "baseline":
        return f"The baseline ships unchanged: AUC {text.measured(shipped['auc'])}."
    if shipped["auc"] is None:
        return f"{size(figures)}, {speed(figures)}; AUC {text.UNDEFINED} on the test split."
    against = [f"{text.signed(figures.to_baseline)} against the baseline"]
    if figures.to_control is not None and figures.control is not figures.baseline:
        against.append(f"{text.signed(figures.to_control)} against the control")
    return f"{size(figures)}, {speed(figures)}; AUC {text.score(shipped['auc'])}, {text.listed(against)}."


def size(figures: Headline) -> str:
    """Say the size of the shipped model relative to the baseline: ``5.66× smaller``."""
    return _compared(figures.size_ratio, "smaller", "larger", "as large")


def speed(figures: Headline) -> str:
    """Say the throughput of the shipped model relative to the baseline: ``2.11× faster``."""
    return _compared(figures.shipped["throughput_ratio"], "faster", "slower", "as fast")


def _compared(value: float, more: str, less: str, same: str) -> str:
    if abs(value - 1) < SAME:
        return same
    return f"{text.ratio(value)} {more}" if value > 1 else f"{text.ratio(1 / value)} {less}"


def attribution(figures: Headline) -> str:
    """Say which part of the difference to the baseline is training, and which is compression."""
    shipped, control, baseline = figures.shipped, figures.control, figures.baseline
    if method_of(shipped["name"]) in UNCOMPRESSED:
        return "What ships is not compressed; no compressed candidate was chosen."
    if figures.to_baseline is None:
        return NO_AUC
    if control is baseline:
        return (
            "The shipped model was not fine-tuned, so the baseline is its fair comparison: "
            f"all of {text.signed(figures.to_baseline)} is compression."
        )
    if control is None or figures.to_control is None:
        return (
            "This run has no control for the shipped model (the uncompressed model fine-tuned with the same "
            "recipe), so a gain over the baseline may come from more training instead of compression."
        )
    training = auc_of(control) - auc_of(baseline)
    parts = (
        "The control is the uncompressed model fine-tuned with the same recipe. More training alone moved "
        f"it by {text.signed(training)}; so of the shipped model's {text.signed(figures.to_baseline)}, "
        f"{text.signed(training)} is training and {text.signed(figures.to_control)} is compression."
    )
    if training > 0 and figures.to_baseline > 0:
        parts += " A gain that the control also shows comes from more training, not from compression."
    return parts


def auc_error(auc: float | None, rows: int, positive_share: float) -> float | None:
    """Estimate the standard error of an AUC by the size of the split alone; None where it is undefined.

    Source: Hanley and McNeil, Radiology 143 (1982) 29, equation 1.
    """
    positives = round(rows * positive_share)
    negatives = rows - positives
    if auc is None or positives < 1 or negatives < 1:
        return None
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))


def commands(report: Report) -> list[Command]:
    """List the command of the run, and those that go with it."""
    own: list[Command] = []
    if report.get("command"):
        own.append({"what": "The command of this run", "command": report["command"]})
    return own + report.get("commands", [])
