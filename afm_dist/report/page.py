"""``report.html``: one self-contained page, no script, no network."""

from __future__ import annotations

from string import Template

from afm_dist.report import summary, text
from afm_dist.report.elements import EMPTY, Html, code, join, paragraph, plain, section
from afm_dist.report.model_sections import finetuning, relu_modes, results, training
from afm_dist.report.run_sections import data, notes, run
from afm_dist.report.schema import Report
from afm_dist.report.size_sections import embeddings, linear_layers
from afm_dist.report.style import CSS

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$css</style>
</head>
<body>
<main>
$header
$sections
</main>
</body>
</html>
""")

SECTIONS = (
    ("results", "Results", results),
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
    sections = {anchor: (heading, build(report)) for anchor, heading, build in SECTIONS}
    shown = {anchor: (heading, body) for anchor, (heading, body) in sections.items() if body}
    links = join(
        (Html(f'<a href="#{anchor}">{heading}</a>') for anchor, (heading, _) in shown.items()), between=" "
    )
    bodies = join(section(anchor, heading, body) for anchor, (heading, body) in shown.items())
    return PAGE.substitute(
        title=plain(report["title"]),
        css=CSS,
        header=_header(report, Html(f'<nav aria-label="Sections">{links}</nav>')),
        sections=bodies,
    )


def _header(report: Report, navigation: Html) -> Html:
    figures = summary.headline(report)
    created = f", {text.moment(report['created'])}" if report.get("created") else ""
    return Html(
        "<header>\n"
        f"<h1>{plain(report['title'])}</h1>\n"
        f'<p class="origin">afm-dist compression report{plain(created)}</p>\n'
        f'<p class="lead">{plain(summary.sentence(figures))}</p>\n'
        f"{_figures(figures)}\n{_ships(report)}\n{paragraph(plain(summary.attribution(figures)))}\n"
        f"{navigation}\n</header>"
    )


def _figures(figures: summary.Headline) -> Html:
    shipped, baseline, control = figures.shipped, figures.baseline, figures.control
    blocks = [
        (
            "Size",
            summary.size(figures),
            f"{text.shrinkage(baseline['bytes'], shipped['bytes'])}; "
            f"{text.millions(baseline['parameters'])} → {text.millions(shipped['parameters'])} parameters",
        ),
        (
            "Throughput",
            summary.speed(figures),
            f"{_measured(shipped.get('throughput_ratio_min'), shipped.get('throughput_ratio_max'))}"
            f"{text.count(baseline['rows_per_second'])} → {text.count(shipped['rows_per_second'])} rows/s",
        ),
        (
            "AUC against the baseline",
            text.signed(figures.to_baseline),
            f"{text.score(baseline['auc'])} → {text.score(shipped['auc'])}",
        ),
    ]
    if control is not None and control is not baseline:
        blocks.append(
            (
                "AUC against the control",
                text.signed(figures.to_control),
                f"{text.score(control['auc'])} → {text.score(shipped['auc'])}; "
                "the uncompressed model with the same fine-tuning",
            )
        )
    if figures.to_bayes is not None:
        blocks.append(
            (
                "Below the best possible",
                text.score(figures.to_bayes),
                f"Bayes {text.score(shipped['auc'] + figures.to_bayes)}; the baseline is "
                f"{text.score(shipped['auc'] + figures.to_bayes - baseline['auc'])} below",
            )
        )
    body = "\n".join(
        f'<div><dt>{plain(name)}</dt><dd class="value">{plain(value)}</dd>'
        f'<dd class="from">{plain(origin)}</dd></div>'
        for name, value, origin in blocks
    )
    return Html(f'<dl class="figures">\n{body}\n</dl>')


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
