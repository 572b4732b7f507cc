"""Sections about the run: data, notes, command, environment, timings, configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from afm_dist.report import text
from afm_dist.report.elements import (
    EMPTY,
    Grid,
    Html,
    Line,
    code,
    columns,
    definitions,
    disclosure,
    grid,
    join,
    plain,
)
from afm_dist.report.schema import Report


def data(report: Report) -> Html:
    """What the models were trained and measured on."""
    content = report.get("data")
    if not content:
        return EMPTY
    facts = [("Name", plain(content["name"]))]
    if content.get("preset"):
        facts.append(("Preset", code(content["preset"])))
    if content.get("fields"):
        fields = text.listed([f"{number} {kind}" for kind, number in content["fields"].items()])
        facts.append(("Fields", plain(fields)))
    if "ids" in content:
        facts.append(("Ids in the vocabularies", plain(text.count(content["ids"]))))
    if "bayes_auc" in content:
        where = f" on {content['bayes_split']}" if content.get("bayes_split") else ""
        best = f"AUC {text.score(content['bayes_auc'])}"
        if "bayes_log_loss" in content:
            best += f", log loss {text.score(content['bayes_log_loss'])}"
        facts.append((f"Best possible (Bayes){where}", plain(best)))
    if content.get("fingerprint"):
        facts.append(("Fingerprint", code(content["fingerprint"])))
    lines = [
        Line(
            cells=[
                plain(name),
                plain(text.count(split["rows"])),
                plain(
                    f"{100 * split['positive_share']:.2f}{text.SPACE}%"
                    if "positive_share" in split
                    else text.NONE
                ),
            ]
        )
        for name, split in (content.get("splits") or {}).items()
    ]
    splits = Grid(caption="Splits", columns=["Split", "Rows", "Positive"], groups=[("", lines)])
    return columns(definitions(facts), grid(splits) if lines else EMPTY)


def notes(report: Report) -> Html:
    """Remarks of the job."""
    items = report.get("notes")
    return (
        Html("<ul>\n" + "\n".join(f"<li>{plain(note)}</li>" for note in items) + "\n</ul>")
        if items
        else EMPTY
    )


def run(report: Report) -> Html:
    """What a reader needs to repeat the run."""
    command = report.get("command")
    environment = report.get("environment")
    config = report.get("config")
    return join(
        [
            Html(f"<h3>Command</h3>\n<pre>{plain(command)}</pre>") if command else EMPTY,
            columns(
                Html(f"<div><h3>Environment</h3>\n{definitions(_facts(environment))}</div>")
                if environment
                else EMPTY,
                _timings(report),
            ),
            disclosure("Configuration", Html(f"<pre>{plain(json.dumps(config, indent=2))}</pre>"))
            if config
            else EMPTY,
        ]
    )


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, Html]]:
    """One level of nesting is spread out: packages stand beside the rest."""
    facts: list[tuple[str, Html]] = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            facts += _facts(value)
        else:
            facts.append((key, plain(value)))
    return facts


def _timings(report: Report) -> Html:
    timings = report.get("timings")
    if not timings:
        return EMPTY
    lines = [
        Line(
            cells=[
                plain(timing["stage"]),
                plain("reused" if timing.get("reused") else ""),
                plain(text.duration(timing["seconds"])),
            ]
        )
        for timing in timings
    ]
    spent = sum(timing["seconds"] for timing in timings if not timing.get("reused"))
    lines.append(Line(cells=[plain("this run"), EMPTY, plain(text.duration(spent))], style="ships-row"))
    table = Grid(
        caption="Wall time of each stage; a reused stage shows the time it once took",
        columns=["Stage", "", "Time"],
        words=(0, 1),
        groups=[("", lines)],
    )
    return Html(f"<div><h3>Timings</h3>\n{grid(table)}</div>")
