"""The section of a sweep: AUC against bytes, and a table of ranks against dimensions for each method."""

from __future__ import annotations

from collections.abc import Sequence

from afm_dist.compression.plan import TABLE
from afm_dist.report import text
from afm_dist.report.elements import (
    EMPTY,
    Grid,
    Html,
    Line,
    columns,
    disclosure,
    figure,
    grid,
    join,
    paragraph,
    plain,
)
from afm_dist.report.model_sections import name_cell
from afm_dist.report.plots import sweep as plots
from afm_dist.report.schema import Report, Row, SweepPoint
from afm_dist.report.summary import NO_AUC, auc_of, scored

FULL = "full"
METHODS = {"afm": "AFM", "weighted": "Weighted AFM", "svd": "SVD of the weights"}


def sweep(report: Report) -> Html:
    """What every rank costs before fine-tuning."""
    points = report.get("sweep")
    if not points:
        return EMPTY
    rows = report["rows"]
    plotted = scored(points) == points and scored(rows) == rows
    return join(
        [
            paragraph(plain(WORDS)),
            _plot(points, rows) if plotted else paragraph(plain(NO_AUC)),
            columns(*(grid(_matrix(points, method)) for method in METHODS if _tried(points, method))),
            disclosure(f"All {len(points)} models in numbers", grid(_all(points))),
        ]
    )


def _plot(points: Sequence[SweepPoint], rows: Sequence[Row]) -> Html:
    lowest, _ = plots.limits(points, rows)
    below = sum(auc_of(point) < lowest for point in points)
    hidden = f" {below} of {len(points)} models lie below the axis." if below else ""
    return figure(
        plots.auc_against_bytes(points, rows),
        "AUC against size, every rank",
        plain(
            "Hollow: before fine-tuning. Filled: trained or fine-tuned. The line joins the models "
            f"that none beats (SVD apart): no other has as few bytes with as high a validation AUC.{hidden}"
        ),
    )


WORDS = (
    "All models come from the same uncompressed one and the same statistics, and are shown before any "
    "fine-tuning. What was fine-tuned was chosen on the validation split."
)


def _tried(points: Sequence[SweepPoint], method: str) -> bool:
    return any(point["method"] == method for point in points)


def _cell(point: SweepPoint) -> tuple[int | None, int | None]:
    """Rank of the linear layers and embedding dimension; None: as it was. Of fields alike, as of a grid."""
    common = {name: rank for name, rank in point["ranks"].items() if isinstance(rank, int)}
    linear = [rank for name, rank in common.items() if name != TABLE]
    return (linear[0] if linear else None), common.get(TABLE)


def _rank(item: tuple[str, int | dict[str, int]]) -> str:
    """A module with its rank, or those of its fields."""
    name, rank = item
    if isinstance(rank, int):
        return f"{name} {rank}"
    return f"{name} {min(rank.values())} to {max(rank.values())} by field"


def _matrix(points: Sequence[SweepPoint], method: str) -> Grid:
    """Test AUC by rank of the linear layers (rows) and embedding dimension (columns)."""
    (baseline,) = (point for point in points if point["method"] == "baseline")
    cells = {_cell(point): point for point in points if point["method"] == method}
    cells[None, None] = baseline

    def ascending(values: set[int | None]) -> list[int | None]:
        return [*sorted(value for value in values if value is not None), None]

    ranks, dims = ascending({rank for rank, _ in cells}), ascending({dim for _, dim in cells})
    lines = []
    for rank in ranks:
        found = [cells.get((rank, dim)) for dim in dims]
        shown = [plain(text.NONE if point is None else text.measured(point["auc"])) for point in found]
        lines.append(Line(cells=[plain(rank or FULL), *shown]))
    return Grid(
        caption=f"{METHODS[method]}: test AUC by rank of the linear layers (down) and embedding dimension",
        columns=["Rank", *(f"dim {dim}" if dim else FULL for dim in dims)],
        words=(),
        groups=[("", lines)],
    )


def _all(points: Sequence[SweepPoint]) -> Grid:
    (before,) = (point["bytes"] for point in points if point["method"] == "baseline")
    lines = [
        Line(
            cells=[
                Html(
                    name_cell(point["name"])
                    + ('<span class="badge">front</span>' if point["front"] else EMPTY)
                ),
                plain(text.megabytes(point["bytes"])),
                plain(text.ratio(before / point["bytes"])),
                plain(text.score(point["validation_auc"])),
                plain(text.measured(point["auc"])),
                plain(text.measured(point["log_loss"])),
                plain(", ".join(map(_rank, point["ranks"].items())) or FULL),
            ]
        )
        for point in sorted(points, key=lambda point: (point["bytes"], point["name"]))
    ]
    return Grid(
        caption="Every model of the sweep before fine-tuning, by size",
        columns=["Model", "MB", "Smaller", "Validation AUC", "AUC", "Log loss", "Ranks"],
        words=(0, 6),
        groups=[("", lines)],
    )
