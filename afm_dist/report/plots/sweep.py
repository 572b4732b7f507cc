"""The figure of a sweep: AUC against bytes of every model that was tried."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from afm_dist.report import text
from afm_dist.report.looks import in_order, look_of
from afm_dist.report.plots.canvas import COLOUR, SMALL, around, marker, render, scale
from afm_dist.report.plots.models import labels, places, points_of, quality_axes
from afm_dist.report.schema import Row, SweepPoint
from afm_dist.report.summary import auc_of

HEIGHT = 360
ABOVE = 44.0


def limits(points: Sequence[SweepPoint], rows: Sequence[Row]) -> tuple[float, float]:
    """Find where the AUC axis begins and ends: what a reader may choose is on it, with a margin."""
    finished = [auc_of(row) for row in rows]
    low = min([auc_of(point) for point in points if point["front"]] + finished)
    return around((low, max([*map(auc_of, points), *finished])), 0.08)


def auc_against_bytes(points: Sequence[SweepPoint], rows: Sequence[Row]) -> Markup:
    """Draw every model: hollow before fine-tuning, filled after. The line joins what none beats.

    All points and rows have an AUC.
    """
    low, high = limits(points, rows)

    def paint(figure: Figure) -> None:
        ax = quality_axes(figure, (low, high), top=ABOVE)
        sizes, _ = places(points)
        ax.set(xscale="log", xlim=(min(sizes) / 1.25, max(sizes) * 1.25))
        near = max(sizes) / min(sizes) < 100
        scale(ax.xaxis, "size, MB", "{:g}", FixedLocator(_round_sizes(*ax.get_xlim())) if near else None)
        front = [point for point in points if point["front"]]
        ax.plot(*places(front), color=COLOUR["muted"], linewidth=1, zorder=1)
        tried = [point for point in points if point["method"] != "baseline"]
        for point in tried:
            if auc_of(point) >= low:
                style = marker(look_of(point["method"]), filled=False, size=5.5)
                ax.plot(*places([point]), zorder=3, **style)
        finished = [row for row in rows if row["stage"] != "before-finetune"]
        for row in finished:
            style = marker(look_of(row["name"]), filled=True)
            ax.plot(*places([row]), zorder=4, **style)
        labels(ax, points_of(finished))
        handles = [
            Line2D([], [], label=look.label, **marker(look, filled=False, size=5.5))
            for look in map(look_of, in_order(point["method"] for point in tried))
        ]
        ax.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2, frameon=False,
            fontsize=SMALL, borderpad=0, borderaxespad=0, handletextpad=0.3, columnspacing=1.2,
        )  # fmt: skip

    values = ", ".join(
        f"{point['name']} {text.score(auc_of(point))} at {text.megabytes(point['bytes'])} MB"
        for point in points
        if point["front"]
    )
    return render(paint, name="sweep", label=f"Test AUC against size: {values}.", height=HEIGHT)


def _round_sizes(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every power of ten between two sizes."""
    sizes = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    return [size for size in sizes if low <= size <= high]
