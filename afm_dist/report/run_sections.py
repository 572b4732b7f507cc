"""Sections about the run: notes, commands, environment, timings, configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from afm_dist.report import text
from afm_dist.report.schema import Report
from afm_dist.report.summary import commands
from afm_dist.report.view import (
    Beside,
    Block,
    Code,
    Facts,
    Folded,
    Grid,
    Items,
    Line,
    Part,
    numbers,
    texts,
)

MEMORY = "memory_bytes"


def notes(report: Report) -> list[Block]:
    """Show the remarks of the job."""
    return [Items(report["notes"])] if report.get("notes") else []


def run(report: Report) -> list[Block]:
    """Show what a reader needs to repeat the run."""
    environment, timings, config = (report.get(key) for key in ("environment", "timings", "config"))
    facts = [Part("Environment", [Facts(facts_of(report["environment"]))])] if environment else []
    times = [Part("Timings", [_timings(report)])] if timings else []
    return [
        *(Part(each["what"], [Code(each["command"])]) for each in commands(report)),
        *([Beside([*facts, *times])] if facts or times else []),
        *([Folded("Configuration", [Code(json.dumps(config, indent=2), "json")])] if config else []),
    ]


def facts_of(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List facts; one level of nesting is spread out, so packages stand beside the rest."""
    facts: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            facts += facts_of(value)
        elif key == MEMORY and isinstance(value, int):
            facts.append(("memory", f"{text.significant(value / 1e9)}{text.SPACE}GB"))
        else:
            facts.append((key.replace("_", " "), str(value)))
    return facts


def _timings(report: Report) -> Grid:
    timings = report["timings"]
    lines = [
        Line(
            cells=[
                timing["stage"],
                "reused" if timing.get("reused") else "",
                text.duration(timing["seconds"]),
            ]
        )
        for timing in timings
    ]
    spent = sum(timing["seconds"] for timing in timings if not timing.get("reused"))
    lines.append(Line(cells=["this run", "", text.duration(spent)], strong=True))
    return Grid(
        "Wall time of each stage; a reused stage shows the time it once took",
        [*texts("Stage", ""), *numbers("Time")],
        lines,
    )
