"""The section about calibration: whether predicted clicks are the clicks there were."""

from __future__ import annotations

from afm_dist.report import text
from afm_dist.report.elements import (
    EMPTY,
    Grid,
    Html,
    Line,
    columns,
    figure,
    grid,
    paragraph,
    plain,
)
from afm_dist.report.model_sections import name_cell
from afm_dist.report.plots import calibration as plots
from afm_dist.report.schema import Report, Row
from afm_dist.report.summary import headline, ordered

WORDS = (
    "Bids and prices multiply predictions, so a model must be right on average and not only rank well. "
    "“Predicted over observed” counts the clicks of the test split: 1 is right, above 1 the model expects "
    "too many. “Mean distance” is that of predicted and observed rate, in tenths of the rows by prediction."
)


def calibration(report: Report) -> Html:
    """Observed against predicted clicks of baseline, control and what ships; all models in numbers."""
    measured = [row for row in ordered(report["rows"]) if "calibration" in row]
    if not measured:
        return EMPTY
    shown = _plotted(report)
    plot = EMPTY
    if shown:
        plot = figure(
            plots.reliability(shown),
            "Observed against predicted clicks",
            plain(
                "Each point is a tenth of the test rows, by prediction. Dashed: right. Shaded: where chance "
                "alone puts 95 % of the points of a model that is right, with the predictions of the one "
                "that ships."
            ),
        )
    words = paragraph(plain(WORDS), "small muted")
    return columns(plot, Html(f"<div>\n{grid(_grid(measured))}\n{words}\n</div>"))


def _plotted(report: Report) -> list[Row]:
    """The baseline, the control and what ships, each once, where there were clicks to be compared with."""
    figures = headline(report)
    rows: list[Row] = []
    for row in (figures.baseline, figures.control, figures.shipped):
        if row is not None and row.get("reliability") and row.get("calibration") and row not in rows:
            rows.append(row)
    return rows if figures.shipped in rows else []


def _error(row: Row) -> str:
    return text.measured(row["calibration_error"]) if "calibration_error" in row else text.NONE


def _grid(measured: list[Row]) -> Grid:
    with_error = any("calibration_error" in row for row in measured)
    lines = [
        Line(
            cells=[
                name_cell(row["name"]),
                plain(text.FINE_TUNING[row["stage"]]),
                plain(text.measured(row["calibration"])),
                *([plain(_error(row))] if with_error else []),
            ]
        )
        for row in measured
    ]
    return Grid(
        caption="Calibration on the test split",
        columns=[
            *("Model", "Fine-tuning", "Predicted over observed"),
            *(["Mean distance"] if with_error else []),
        ],
        words=(0, 1),
        groups=[("", lines)],
    )
