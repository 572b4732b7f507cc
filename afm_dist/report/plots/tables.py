"""Figure of the embedding tables: bytes of each field before and after."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from afm_dist.report import text
from afm_dist.report.looks import AFTER, BEFORE
from afm_dist.report.plots.canvas import COLOUR, SMALL, WIDTH, beside, render, row_axes, scale
from afm_dist.report.schema import TableRecord


def bytes_by_field(tables: Sequence[TableRecord]) -> Markup:
    """Draw two bars a field, the compressed one inside the other, the largest on top.

    The axis is linear: the figure is there to show which fields hold the bytes. The labels
    carry the small ones.
    """
    shown = sorted(tables, key=lambda table: -table["bytes_before"])
    height = 15 * len(shown) + 92

    def paint(figure: Figure) -> None:
        ax = row_axes(figure, [table["field"] for table in shown], right=16, top=50)
        ax.set_xlim(0, max(table["bytes_before"] for table in shown) / 1e6 * 1.45)
        for place, table in enumerate(shown):
            before, after = table["bytes_before"] / 1e6, table["bytes_after"] / 1e6
            ax.barh(place, before, height=0.72, color=COLOUR[BEFORE], alpha=0.35, linewidth=0)
            ax.barh(place, after, height=0.72, color=COLOUR[AFTER], linewidth=0)
            words = text.shrinkage(table["bytes_before"], table["bytes_after"])
            beside(ax, place, words, max(before, after))
        scale(ax.xaxis, "MB", "{:,g}", MaxNLocator(5))
        for left, colour, words in ((92, BEFORE, "before"), (166, AFTER, "after")):
            figure.text(
                left / WIDTH, 1 - 28 / height, f"■ {words}", color=COLOUR[colour], size=SMALL, va="center"
            )

    total = (sum(table["bytes_before"] for table in tables), sum(table["bytes_after"] for table in tables))
    label = f"Bytes by field, in total {text.shrinkage(*total)}."
    return render(paint, name="table-bytes", label=label, height=height)
