"""The report of a run as a document: what ``report.html`` and ``report.md`` show."""

from __future__ import annotations

from afm_dist.report import summary, text
from afm_dist.report.calibration_section import calibration
from afm_dist.report.data_section import data
from afm_dist.report.model_sections import finetuning, relu_modes, training
from afm_dist.report.results import results
from afm_dist.report.run_sections import notes, run
from afm_dist.report.schema import Report
from afm_dist.report.size_sections import embeddings, linear_layers
from afm_dist.report.summary import auc_of
from afm_dist.report.sweep_sections import sweep
from afm_dist.report.view import (
    Block,
    Document,
    Emphasis,
    KeyFigures,
    Paragraph,
    Section,
    Span,
    code,
)


def document(report: Report) -> Document:
    """Lay out a report."""
    headline = summary.headline(report)
    created = f", {text.moment(report['created'])}" if report.get("created") else ""
    return Document(
        title=report["title"],
        origin=f"afm-dist compression report{created}",
        lead=summary.sentence(headline),
        opening=[_figures(headline), _ships(report), Paragraph(summary.attribution(headline))],
        sections=[
            Section("results", "Results", results(report)),
            Section("sweep", "Every rank", sweep(report), brief=False),
            Section("calibration", "Calibration", calibration(report), brief=False),
            Section("layers", "Linear layers", linear_layers(report)),
            Section("tables", "Embedding tables", embeddings(report)),
            Section("finetuning", "Fine-tuning", finetuning(report)),
            Section("activation", "Activation between the factors", relu_modes(report), brief=False),
            Section("training", "Baseline training", training(report), brief=False),
            Section("data", "Data", data(report)),
            Section("notes", "Notes", notes(report)),
            Section("run", "Run", run(report)),
        ],
    )


def _figures(headline: summary.Headline) -> KeyFigures:
    shipped, baseline, control = headline.shipped, headline.baseline, headline.control
    spread = text.spread(shipped.get("throughput_ratio_min"), shipped.get("throughput_ratio_max"))
    figures = [
        (
            "Size",
            summary.size(headline),
            f"{text.shrinkage(baseline['bytes'], shipped['bytes'])}; "
            f"{text.millions(baseline['parameters'])} → {text.millions(shipped['parameters'])} parameters",
        ),
        (
            "Throughput",
            summary.speed(headline),
            (f"measured {spread}; " if spread else "")
            + f"{text.count(baseline['rows_per_second'])} → {text.count(shipped['rows_per_second'])} rows/s",
        ),
        (
            "AUC against the baseline",
            _change(headline.to_baseline),
            f"{text.measured(baseline['auc'])} → {text.measured(shipped['auc'])}",
        ),
    ]
    if control is not None and control is not baseline:
        figures.append(
            (
                "AUC against the control",
                _change(headline.to_control),
                f"{text.measured(control['auc'])} → {text.measured(shipped['auc'])}; "
                "the uncompressed model with the same fine-tuning",
            )
        )
    if headline.to_bayes is not None:
        best = auc_of(shipped) + headline.to_bayes
        below = f"the baseline is {text.score(best - auc_of(baseline))} below"
        figures.append(
            (
                "Below the best possible",
                text.score(headline.to_bayes),
                f"Bayes {text.score(best)}; {below}",
            )
        )
    return KeyFigures(figures)


def _change(difference: float | None) -> str:
    return text.UNDEFINED if difference is None else text.signed(difference)


def _ships(report: Report) -> Block:
    shipped = report["shipped"]
    reason, checkpoint = shipped.get("reason", "").rstrip("."), shipped.get("checkpoint")
    where: list[str | Span] = [" Checkpoint: ", code(checkpoint)] if checkpoint else []
    return Emphasis(
        [
            Span(text=f"Ships: {shipped['name']}", strong=True),
            f", {text.STAGE_WORDS[shipped['stage']]}.",
            f" {reason[:1].upper()}{reason[1:]}." if reason else "",
            *where,
        ]
    )
