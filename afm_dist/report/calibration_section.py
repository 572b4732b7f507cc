"""The section about calibration: whether predicted clicks are the clicks there were."""

from __future__ import annotations

from functools import partial

from afm_dist.report import text
from afm_dist.report.looks import marked
from afm_dist.report.plots import calibration as plots
from afm_dist.report.schema import Report, Row
from afm_dist.report.summary import headline, ordered
from afm_dist.report.view import (
    Beside,
    Block,
    GridColumn,
    Inline,
    Paragraph,
    Part,
    Plot,
    grid,
    numbers,
    pruned,
    texts,
)

COLUMNS = (
    *texts("Model", "Fine-tuning"),
    *numbers("Predicted over observed"),
    GridColumn("Mean distance", optional=True),
)
WORDS = (
    "Bids and prices multiply predictions, so a model must be right on average and not only rank well. "
    "“Predicted over observed” counts the clicks of the test split: 1 is right, above 1 the model expects "
    "too many. “Mean distance” is that of predicted and observed rate, in tenths of the rows by prediction."
)


def calibration(report: Report) -> list[Block]:
    """Draw observed against predicted clicks of baseline, control and what ships; list all models."""
    measured = [row for row in ordered(report["rows"]) if "calibration" in row]
    if not measured:
        return []
    cells: list[list[Inline]] = [
        [
            marked(row["name"]),
            text.FINE_TUNING[row["stage"]],
            text.measured(row["calibration"]),
            text.measured(row["calibration_error"]) if "calibration_error" in row else text.NONE,
        ]
        for row in measured
    ]
    table = pruned(grid("Calibration on the test split", COLUMNS, cells))
    return [Beside([*_plot(report), Part("", [table, Paragraph(WORDS, small=True)])])]


def _plot(report: Report) -> list[Block]:
    """Draw the baseline, the control and what ships, each once, where there were clicks to compare with."""
    figures = headline(report)
    rows: list[Row] = []
    for row in (figures.baseline, figures.control, figures.shipped):
        if row is not None and row.get("reliability") and row.get("calibration") and row not in rows:
            rows.append(row)
    if figures.shipped not in rows:
        return []
    words = (
        "Each point is a tenth of the test rows, by prediction. Dashed: right. Shaded: where chance alone "
        "puts 95 % of the points of a model that is right, with the predictions of the one that ships."
    )
    return [Plot(partial(plots.reliability, rows), "Observed against predicted clicks", words)]
