"""``report.html``: one self-contained page, no script, no network."""

from __future__ import annotations

from afm_dist.report import summary, text
from afm_dist.report.calibration_section import calibration
from afm_dist.report.data_section import data
from afm_dist.report.document import document
from afm_dist.report.elements import EMPTY, Html, code, figures, paragraph, plain
from afm_dist.report.model_sections import finetuning, relu_modes, results, training
from afm_dist.report.run_sections import notes, run
from afm_dist.report.schema import Report
from afm_dist.report.size_sections import embeddings, linear_layers
from afm_dist.report.summary import auc_of
from afm_dist.report.sweep_sections import sweep

SECTIONS = (
    ("results", "Results", results),
    ("sweep", "Every rank", sweep),
    ("calibration", "Calibration", calibration),
    ("layers", "Linear layers", linear_layers),
    ("tables", "Embedding tables", embeddings),
    ("finetuning", "Fine-tuning", finetuning),
    ("activation", "Activation between the factors", relu_modes),
    ("training", "Baseline training", training),
    ("data", "Data", data),
    ("notes", "Notes", notes),
    ("run", "Run", run),
)


def page(report: Report) -> str:
    """The whole of ``report.html``."""
    sections = [(anchor, heading, build(report)) for anchor, heading, build in SECTIONS]
    return document(report["title"], _header(report), sections)


def _header(report: Report) -> Html:
    headline = summary.headline(report)
    created = f", {text.moment(report['created'])}" if report.get("created") else ""
    return Html(
        f"<h1>{plain(report['title'])}</h1>\n"
        f'<p class="origin">afm-dist compression report{plain(created)}</p>\n'
        f'<p class="lead">{plain(summary.sentence(headline))}</p>\n'
        f"{_figures(headline)}\n{_ships(report)}\n{paragraph(plain(summary.attribution(headline)))}"
    )


def _figures(headline: summary.Headline) -> Html:
    shipped, baseline, control = headline.shipped, headline.baseline, headline.control
    blocks = [
        (
            "Size",
            summary.size(headline),
            f"{text.shrinkage(baseline['bytes'], shipped['bytes'])}; "
            f"{text.millions(baseline['parameters'])} → {text.millions(shipped['parameters'])} parameters",
        ),
        (
            "Throughput",
            summary.speed(headline),
            f"{_measured(shipped.get('throughput_ratio_min'), shipped.get('throughput_ratio_max'))}"
            f"{text.count(baseline['rows_per_second'])} → {text.count(shipped['rows_per_second'])} rows/s",
        ),
        (
            "AUC against the baseline",
            _change(headline.to_baseline),
            f"{text.measured(baseline['auc'])} → {text.measured(shipped['auc'])}",
        ),
    ]
    if control is not None and control is not baseline:
        blocks.append(
            (
                "AUC against the control",
                _change(headline.to_control),
                f"{text.measured(control['auc'])} → {text.measured(shipped['auc'])}; "
                "the uncompressed model with the same fine-tuning",
            )
        )
    if headline.to_bayes is not None:
        blocks.append(
            (
                "Below the best possible",
                text.score(headline.to_bayes),
                f"Bayes {text.score(auc_of(shipped) + headline.to_bayes)}; the baseline is "
                f"{text.score(auc_of(shipped) + headline.to_bayes - auc_of(baseline))} below",
            )
        )
    return figures(blocks)


def _change(difference: float | None) -> str:
    return text.UNDEFINED if difference is None else text.signed(difference)


def _measured(low: float | None, high: float | None) -> str:
    measured = text.spread(low, high)
    return f"measured {measured}; " if measured else ""


def _ships(report: Report) -> Html:
    shipped = report["shipped"]
    where = Html(f" Checkpoint: {code(shipped['checkpoint'])}") if shipped.get("checkpoint") else EMPTY
    reason = shipped.get("reason", "").rstrip(".")
    because = Html(f" {plain(reason[:1].upper() + reason[1:])}.") if reason else EMPTY
    stage = text.STAGE_WORDS[shipped["stage"]]
    what = f"<strong>Ships: {plain(shipped['name'])}</strong>, {stage}.{because}{where}"
    return Html(f'<div class="ships"><p>{what}</p></div>')
