"""The result table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from afm_dist.report import text
from afm_dist.report.summary import baseline_of, control_of, grouped
from afm_dist.report.validate import validated

STAGES = {"trained": "trained", "before-finetune": "before", "after-finetune": "after"}


def table(report: Mapping[str, Any]) -> Table:
    """The rows as a table that fits 100 columns and can be read at 80.

    Args:
        report: The content of ``report.json``.
    """
    content = validated(report)
    rows = content["rows"]
    baseline = baseline_of(rows)
    shipped = (content["shipped"]["name"], content["shipped"]["stage"])
    result = Table(
        title=Text(content["title"]),
        title_justify="left",
        caption=Text(
            "before, after: fine-tuning · control: the uncompressed model, fine-tuned alike · bold: ships"
        ),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    result.add_column("model", overflow="fold", min_width=8)
    result.add_column("stage", no_wrap=True)
    for name in ("AUC", "vs base", "vs ctrl", "logloss", "MB", "rows/s", "speed"):
        result.add_column(name, justify="right", no_wrap=True)
    for _, members in grouped(rows):
        for row in members:
            control = control_of(rows, row)
            cells = (
                row["name"],
                STAGES[row["stage"]],
                text.score(row["auc"]),
                text.NONE if row is baseline else text.signed(row["auc"] - baseline["auc"]),
                text.NONE if control is None else text.signed(row["auc"] - control["auc"]),
                text.score(row["log_loss"]),
                text.megabytes(row["bytes"]),
                text.count(row["rows_per_second"]),
                text.ratio(row["throughput_ratio"]),
            )
            style = "bold" if (row["name"], row["stage"]) == shipped else ""
            result.add_row(*(Text(cell) for cell in cells), style=style)
        result.add_section()
    return result
