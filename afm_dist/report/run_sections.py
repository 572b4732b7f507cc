"""Sections about the run: notes, commands, environment, timings, configuration."""

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
    columns,
    definitions,
    disclosure,
    grid,
    join,
    plain,
)
from afm_dist.report.schema import Report
from afm_dist.report.summary import commands

MEMORY = "memory_bytes"


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
    environment = report.get("environment")
    config = report.get("config")
    return join(
        [
            *(
                Html(f"<h3>{plain(each['what'])}</h3>\n<pre>{plain(each['command'])}</pre>")
                for each in commands(report)
            ),
            columns(
                Html(f"<div><h3>Environment</h3>\n{definitions(facts_of(environment))}</div>")
                if environment
                else EMPTY,
                _timings(report),
            ),
            disclosure("Configuration", Html(f"<pre>{plain(json.dumps(config, indent=2))}</pre>"))
            if config
            else EMPTY,
        ]
    )


def facts_of(environment: Mapping[str, Any]) -> list[tuple[str, Html]]:
    """One level of nesting is spread out: packages stand beside the rest."""
    facts: list[tuple[str, Html]] = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            facts += facts_of(value)
        elif key == MEMORY and isinstance(value, int):
            facts.append(("memory", plain(f"{text.significant(value / 1e9)}{text.SPACE}GB")))
        else:
            facts.append((key.replace("_", " "), plain(value)))
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
