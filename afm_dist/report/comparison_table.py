"""The comparison for the terminal: what each run ships, beside its control."""

from __future__ import annotations

from rich.table import Table

from afm_dist.report import text
from afm_dist.report.comparison import Comparison
from afm_dist.report.terminal import add_row, terminal_table


def table(content: Comparison) -> Table:
    """One row a run: what it ships."""
    result = terminal_table(
        "what ships",
        "vs ctrl: the uncompressed model of the same run, fine-tuned alike · ~: within noise",
        names=("run", "model"),
        figures=("AUC", "vs ctrl", "logloss", "MB", "smaller", "faster"),
    )
    for row in content["rows"]:
        if not row["ships"]:
            continue
        control = row.get("vs_control")
        noise = "~ " if control is not None and control.get("noise") else ""
        cells = (
            row["run"],
            row["name"],
            text.measured(row["auc"]),
            text.NONE if control is None else noise + text.signed(control["mean"]),
            text.measured(row["log_loss"]),
            text.significant(row["bytes"] / 1e6),
            text.ratio(row["smaller"]),
            text.ratio(row["throughput_ratio"]),
        )
        add_row(result, cells)
    return result
