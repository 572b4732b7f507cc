"""The results: the table of all models, the same on every page and in the terminal, and its plots."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.table import Table

from afm_dist.report import text
from afm_dist.report.looks import look_of, marked
from afm_dist.report.schema import Report, Row
from afm_dist.report.summary import (
    NO_AUC,
    auc_difference,
    auc_error,
    baseline_of,
    control_of,
    ordered,
    scored,
)
from afm_dist.report.terminal import to_terminal
from afm_dist.report.validate import validated
from afm_dist.report.view import Beside, Block, Grid, GridColumn, Inline, Line, Paragraph, Plot, pruned

COLUMNS = (
    GridColumn("Model", text=True, short="model", breaks=True),
    GridColumn("Fine-tuning", text=True, short="stage"),
    GridColumn("AUC", short="AUC"),
    GridColumn("vs baseline", short="vs base"),
    GridColumn("vs control", short="vs ctrl"),
    GridColumn("Log loss", short="logloss"),
    GridColumn("Validation AUC", optional=True),
    GridColumn("MB", short="MB"),
    GridColumn("Smaller"),
    GridColumn("Parameters"),
    GridColumn("Rows/s", short="rows/s"),
    GridColumn("Faster", short="speed"),
    GridColumn("Range"),
)


def table(report: Mapping[str, Any]) -> Table:
    """Make the table for the terminal, which fits 100 columns and can be read at 80.

    Args:
        report: The content of ``report.json``.
    """
    content = validated(report)
    return to_terminal(
        results_grid(content),
        content["title"],
        "before, after: fine-tuning · control: the uncompressed model, fine-tuned alike · bold: ships",
    )


def results_grid(report: Report) -> Grid:
    """Lay out the rows, under the label of their method."""
    lines = [_line(report, row) for row in ordered(report["rows"])]
    return pruned(
        Grid("Quality on the test split, size and speed of every model of this run", COLUMNS, lines)
    )


def _line(report: Report, row: Row) -> Line:
    rows = report["rows"]
    baseline, control = baseline_of(rows), control_of(rows, row)
    ships = (row["name"], row["stage"]) == (report["shipped"]["name"], report["shipped"]["stage"])
    cells: list[Inline] = [
        marked(row["name"], badge="ships" if ships else ""),
        text.FINE_TUNING[row["stage"]],
        text.measured(row["auc"]),
        text.NONE if row is baseline else text.signed(auc_difference(row, baseline)),
        text.signed(auc_difference(row, control)),
        text.measured(row["log_loss"]),
        text.score(row.get("validation_auc")),
        text.megabytes(row["bytes"]),
        text.ratio(baseline["bytes"] / row["bytes"]),
        text.millions(row["parameters"]),
        text.count(row["rows_per_second"]),
        text.ratio(row["throughput_ratio"]),
        text.spread(row.get("throughput_ratio_min"), row.get("throughput_ratio_max")) or text.NONE,
    ]
    return Line(cells=cells, strong=ships, note=row.get("note", ""), group=look_of(row["name"]).label)


def results(report: Report) -> list[Block]:
    """Show the table, how to read it, and its plots."""
    from afm_dist.report.plots import models

    rows = report["rows"]
    quality: Block = Paragraph(NO_AUC)
    if scored(rows) == rows:
        quality = Plot(
            partial(models.auc_against_bytes, rows, report.get("data", {}).get("bayes_auc")),
            "AUC against size",
            "Hollow: before fine-tuning. Filled: after it, or as trained. The AUC axis is cut.",
        )
    speed = Plot(
        partial(models.throughput, rows),
        "Throughput",
        "Whiskers: smallest and largest of the repeated measurements. Dashed: the baseline.",
    )
    return [results_grid(report), Paragraph(_how_to_read(report), small=True), Beside([quality, speed])]


def _how_to_read(report: Report) -> str:
    words = (
        "“vs control” compares with the uncompressed model after as many rounds of the same fine-tuning, "
        "and with the baseline where there was none. MB are 10⁶ bytes of the checkpoint. “Faster” is "
        "throughput over the baseline's, “Range” its smallest and largest measurement."
    )
    test = report.get("data", {}).get("splits", {}).get("test")
    if test and "positive_share" in test:
        error = auc_error(baseline_of(report["rows"])["auc"], test["rows"], test["positive_share"])
        if error is not None:
            words += (
                f" Another test split of {text.count(test['rows'])} rows would move a single AUC by about "
                f"±{error:.4f} (one standard error, Hanley and McNeil); differences between models scored on "
                "the same rows vary less."
            )
    return words
