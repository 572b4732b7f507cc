"""Figure of the embedding tables: bytes of each field before and after."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from afm_dist.report import text
from afm_dist.report.elements import Html
from afm_dist.report.plots.canvas import COLOUR, SMALL, WIDTH, axes, render, short
from afm_dist.report.schema import Table


def bytes_by_field(tables: Sequence[Table]) -> Html:
    """Two bars a field, the compressed one inside the other, the largest on top.

    The axis is linear: the figure is there to show which fields hold the bytes. The labels
    carry the small ones.
    """
    shown = sorted(tables, key=lambda table: -table["bytes_before"])
    height = 15 * len(shown) + 92

    def paint(figure: Figure) -> None:
        ax = axes(figure, 92, 42, 16, 50)
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.set_xlim(0, max(table["bytes_before"] for table in shown) / 1e6 * 1.45)
        for place, table in enumerate(shown):
            before, after = table["bytes_before"] / 1e6, table["bytes_after"] / 1e6
            ax.barh(place, before, height=0.72, color=COLOUR["baseline"], alpha=0.35, linewidth=0)
            ax.barh(place, after, height=0.72, color=COLOUR["afm"], linewidth=0)
            words = text.shrinkage(table["bytes_before"], table["bytes_after"])
            ax.annotate(words, (max(before, after), place), (5, 0), textcoords="offset points", va="center",
                        size=SMALL)  # fmt: skip
        ax.set_yticks(range(len(shown)), [short(table["field"], 14) for table in shown])
        ax.tick_params(axis="y", labelcolor=COLOUR["ink"])
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        ax.set_xlabel("MB")
        ax.spines["left"].set_visible(False)
        for left, role, words in ((92, "baseline", "before"), (166, "afm", "after")):
            figure.text(
                left / WIDTH, 1 - 28 / height, f"■ {words}", color=COLOUR[role], size=SMALL, va="center"
            )

    total = (sum(table["bytes_before"] for table in tables), sum(table["bytes_after"] for table in tables))
    label = f"Bytes by field, in total {text.shrinkage(*total)}."
    return render(paint, name="table-bytes", label=label, height=height)
