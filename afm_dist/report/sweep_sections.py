"""The section of a sweep: AUC against bytes, and a table of ranks against dimensions for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from afm_dist.compression.plan import TABLE
from afm_dist.report import text
from afm_dist.report.looks import in_order, look_of, marked
from afm_dist.report.plots import sweep as plots
from afm_dist.report.schema import Report, Row, SweepPoint
from afm_dist.report.summary import NO_AUC, auc_of, scored
from afm_dist.report.view import (
    Beside,
    Block,
    Folded,
    Grid,
    GridColumn,
    Paragraph,
    Plot,
    grid,
    numbers,
    texts,
)

FULL = "full"
BASELINE = "baseline"
WORDS = (
    "All models come from the same uncompressed one and the same statistics, and are shown before any "
    "fine-tuning. What was fine-tuned was chosen on the validation split."
)
Cell = tuple[int | None, int | None]
"""Rank of the linear layers and embedding dimension; None: as it was."""


def sweep(report: Report) -> list[Block]:
    """Show what every rank costs before fine-tuning."""
    points = report.get("sweep")
    if not points:
        return []
    rows = report["rows"]
    plotted = scored(points) == points and scored(rows) == rows
    methods = in_order(point["method"] for point in points if point["method"] != BASELINE)
    matrices = [_matrix(points, method) for method in methods]
    return [
        Paragraph(WORDS),
        _plot(points, rows) if plotted else Paragraph(NO_AUC),
        Beside([matrix for matrix in matrices if matrix is not None]),
        Folded(f"All {len(points)} models in numbers", [_all(points)]),
    ]


def _plot(points: Sequence[SweepPoint], rows: Sequence[Row]) -> Plot:
    lowest, _ = plots.limits(points, rows)
    below = sum(auc_of(point) < lowest for point in points)
    hidden = f" {below} of {len(points)} models lie below the axis." if below else ""
    return Plot(
        partial(plots.auc_against_bytes, points, rows),
        "AUC against size, every rank",
        "Hollow: before fine-tuning. Filled: trained or fine-tuned. The line joins the models that none "
        "beats: no other that may ship has as few bytes with as high a validation AUC." + hidden,
    )


def _cell(ranks: Mapping[str, int | Mapping[str, int] | str]) -> Cell | None:
    """Place a model in a grid; None where its layers, or its fields, differ in rank."""
    common = {name: rank for name, rank in ranks.items() if isinstance(rank, int)}
    linear = {rank for name, rank in common.items() if name != TABLE}
    if len(common) < len(ranks) or len(linear) > 1:
        return None
    return next(iter(linear), None), common.get(TABLE)


def _matrix(points: Sequence[SweepPoint], method: str) -> Grid | None:
    """Lay out test AUC by rank of the linear layers (rows) and embedding dimension (columns).

    None where the models of the method leave more than half of that empty: they were chosen one by one.
    """
    found = {
        cell: point
        for point in points
        if point["method"] in (BASELINE, method) and (cell := _cell(point.get("ranks", {}))) is not None
    }
    ranks, dims = (sorted({cell[axis] for cell in found}, key=lambda one: one or 1 << 60) for axis in (0, 1))
    if len(found) < 2 or 2 * len(found) <= len(ranks) * len(dims):
        return None
    shown = {cell: text.measured(point["auc"]) for cell, point in found.items()}
    return grid(
        f"{look_of(method).label}: test AUC by rank of the linear layers (down) and embedding dimension",
        [GridColumn("Rank"), *(GridColumn(f"dim {dim}" if dim else FULL) for dim in dims)],
        [[str(rank or FULL), *(shown.get((rank, dim), text.NONE) for dim in dims)] for rank in ranks],
    )


def _all(points: Sequence[SweepPoint]) -> Grid:
    (before,) = (point["bytes"] for point in points if point["method"] == BASELINE)
    return grid(
        "Every model of the sweep before fine-tuning, by size",
        [
            *texts("Model"),
            *numbers("MB", "Smaller", "Validation AUC", "AUC", "Log loss"),
            *texts("Ranks"),
        ],
        [
            [
                marked(point["name"], badge="front" if point["front"] else ""),
                text.megabytes(point["bytes"]),
                text.ratio(before / point["bytes"]),
                text.score(point["validation_auc"]),
                text.measured(point["auc"]),
                text.measured(point["log_loss"]),
                ", ".join(map(_rank, point.get("ranks", {}).items())) or FULL,
            ]
            for point in sorted(points, key=lambda point: (point["bytes"], point["name"]))
        ],
    )


def _rank(item: tuple[str, int | dict[str, int] | str]) -> str:
    """Name a module with its rank, those of its fields, or what else becomes of it."""
    name, rank = item
    if isinstance(rank, int | str):
        return f"{name} {rank}"
    return f"{name} {min(rank.values())} to {max(rank.values())} by field"
