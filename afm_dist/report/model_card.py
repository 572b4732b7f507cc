"""The model card: ``README.md`` beside a shipped checkpoint, in the layout of the Hugging Face hub.

A YAML front matter for machines, then what a stranger must know before they use the model. It is made of
``report.json`` and the checkpoint's ``config.json`` alone, so the same run gives the same card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, Template

from afm_dist.compression.plan import Plan
from afm_dist.report import text
from afm_dist.report.dataset_words import label_rate, percent
from afm_dist.report.markdown import blocks_to_markdown, fenced, plain
from afm_dist.report.schema import Report, Row
from afm_dist.report.summary import Headline, attribution, auc_difference, auc_error, headline, sentence
from afm_dist.report.view import grid, numbers, texts

FILE_NAME = "README.md"
KINDS = ("categorical", "numeric")


class Markdown(str):
    """Text that is Markdown already; all other values of the template are escaped."""


METRICS = {
    "auc": (Markdown("roc_auc"), "AUC"),
    "log_loss": (Markdown("log_loss"), "log loss"),
}


def model_card(report: Report, config: Mapping[str, Any], *, vocabularies: bool) -> str:
    """Render the whole of the card.

    Args:
        report: Of the run that ships the checkpoint.
        config: The checkpoint's ``config.json``.
        vocabularies: Whether the checkpoint comes with its vocabularies.
    """
    figures = headline(report)
    shipped: Mapping[str, Any] = figures.shipped
    data: Mapping[str, Any] = report.get("data") or {}
    environment = report.get("environment") or {}
    made = {"afm-dist": environment.get("afm_dist", "?"), **(environment.get("packages") or {})}
    made["revision"] = environment.get("git_revision", "unknown")
    versions = ", ".join(f"{name} {version}" for name, version in made.items())
    of_kinds = [f"{number} {kind}" for kind, number in (data.get("fields") or {}).items()]
    test = (data.get("splits") or {}).get("test") or {}
    share = test.get("positive_share")
    return _template().render(
        title=f"{config['architecture']} for click-through rates, {report['shipped']['name']}",
        report=report,
        config=config,
        data=data,
        shipped=shipped,
        baseline=figures.baseline,
        vocabularies=vocabularies,
        sentence=sentence(figures),
        attribution=attribution(figures),
        scores=[(*METRICS[key], round(shipped[key], 6)) for key in METRICS if shipped[key] is not None],
        settings=", ".join(f"{key} {value}" for key, value in config["hyper_parameters"].items()),
        fields={
            kind: [field["name"] for field in config["fields"] if field["kind"] == kind]
            for kind in dict.fromkeys([*(field["kind"] for field in config["fields"]), *KINDS])
        },
        kinds=text.listed(of_kinds) if of_kinds else text.NONE,
        plan=_plan(config),
        evaluation=_evaluation(figures),
        unknown=_most_unknown(data.get("description") or {}),
        error=None if share is None else auc_error(shipped["auc"], test["rows"], share),
        made=f"{versions}; {report.get('created', '')}." if environment else "",
    )


@cache
def _template() -> Template:
    made = Environment(
        loader=PackageLoader("afm_dist.report"),
        autoescape=False,
        finalize=lambda value: value if isinstance(value, Markdown) else plain(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A quoted string of JSON is one of YAML. No licence: only the owner can give one.
    made.filters |= {
        "quoted": lambda value: Markdown(json.dumps(value)),
        "command": lambda value: Markdown(fenced(str(value))),
        "count": text.count,
        "score": text.score,
        "percent": percent,
        "label_rate": label_rate,
    }
    return made.get_template("card.md")


def _plan(config: Mapping[str, Any]) -> Markdown:
    entries = Plan.from_json(config["compression"]).entries
    if not entries:
        return Markdown("Nothing was compressed.")
    details = [entry.config.details() for entry in entries]
    columns = list(dict.fromkeys(column for own in details for column in own))
    rows = [
        [entry.name, entry.config.label, *(own.get(column, text.NONE) for column in columns)]
        for entry, own in zip(entries, details, strict=True)
    ]
    return Markdown(blocks_to_markdown([grid("", texts("Module", "Method", *columns), rows)]))


def _evaluation(figures: Headline) -> Markdown:
    rows: list[tuple[str, Row]] = [("this model", figures.shipped)]
    if figures.control is not None and figures.control is not figures.baseline:
        rows.append(("control", figures.control))
    rows.append(("baseline", figures.baseline))
    columns = [
        *texts(""),
        *numbers("AUC", "This model's AUC over it", "Log loss", "Predicted over observed clicks"),
        *numbers("MB", "Speed"),
    ]
    cells = [
        [
            name,
            text.measured(row["auc"]),
            text.NONE if row is figures.shipped else text.signed(auc_difference(figures.shipped, row)),
            text.measured(row["log_loss"]),
            text.measured(row["calibration"]) if "calibration" in row else text.NONE,
            text.megabytes(row["bytes"]),
            text.ratio(row["throughput_ratio"]),
        ]
        for name, row in rows
    ]
    return Markdown(blocks_to_markdown([grid("", columns, cells)]))


def _most_unknown(description: Mapping[str, Any]) -> tuple[str, float] | None:
    """Find the field whose test rows have the largest share of unknown tokens, and that share."""
    shares = {
        field["name"]: field["unknown_share"]["test"]
        for field in description.get("categorical", ())
        if field["unknown_share"].get("test") is not None
    }
    return max(shares.items(), key=lambda item: item[1]) if shares else None
