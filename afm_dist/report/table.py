"""The result table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from afm_dist.report import text
from afm_dist.report.summary import auc_difference, baseline_of, control_of, grouped
from afm_dist.report.terminal import add_row, terminal_table
from afm_dist.report.validate import validated


def table(report: Mapping[str, Any]) -> Table:
    """The rows as a table that fits 100 columns and can be read at 80.

    Args:
        report: The content of ``report.json``.
    """
    content = validated(report)
    rows = content["rows"]
    baseline = baseline_of(rows)
    shipped = (content["shipped"]["name"], content["shipped"]["stage"])
    result = terminal_table(
        content["title"],
        "before, after: fine-tuning · control: the uncompressed model, fine-tuned alike · bold: ships",
        names=("model",),
        words=("stage",),
        figures=("AUC", "vs base", "vs ctrl", "logloss", "MB", "rows/s", "speed"),
    )
    for _, members in grouped(rows):
        for row in members:
            control = control_of(rows, row)
            cells = (
                row["name"],
                text.FINE_TUNING[row["stage"]],
                text.measured(row["auc"]),
                text.NONE if row is baseline else text.signed(auc_difference(row, baseline)),
                text.signed(auc_difference(row, control)),
                text.measured(row["log_loss"]),
                text.megabytes(row["bytes"]),
                text.count(row["rows_per_second"]),
                text.ratio(row["throughput_ratio"]),
            )
            add_row(result, cells, ships=(row["name"], row["stage"]) == shipped)
        result.add_section()
    return result
