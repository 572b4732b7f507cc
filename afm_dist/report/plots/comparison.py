"""Figures over several runs: AUC against bytes with a colour a run, and what compression cost in each."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from afm_dist.report import text
from afm_dist.report.comparison import ComparedRow
from afm_dist.report.looks import look_of, method_of
from afm_dist.report.plots.canvas import (
    COLOUR,
    DASHED,
    SMALL,
    around,
    marker,
    render,
    row_axes,
    scale,
    short,
)
from afm_dist.report.plots.models import PlotPoint, labels, places, quality_axes, size_axis
from afm_dist.report.summary import auc_of

HEIGHT = 380
ROW = 40
LEAST_WIDTH = 0.0006
PALETTE = ("blue", "amber", "green", "plum", "violet", "teal", "rust", "grey")
"""Tells runs apart; from the ninth run on the colours come again."""


def colour_of(index: int) -> str:
    """Give the colour of a run."""
    return PALETTE[index % len(PALETTE)]


def auc_against_bytes(
    rows: Sequence[ComparedRow], runs: Sequence[str], bayes: float | None, name: str
) -> Markup:
    """Draw what each run has in the end, its baseline included; a line joins the baseline and what ships.

    Args:
        rows: Of runs on the same data, without those before fine-tuning; all have an AUC.
        runs: Names, in order.
        bayes: The best AUC possible, where it is known.
        name: Unique name of the figure.
    """
    best = bayes if bayes is not None and reaches(rows, bayes) else None
    low, high = _limits(rows)
    high = high if best is None else max(high, best + 0.1 * (high - low))
    shipped = [row for row in rows if row["ships"]]

    def paint(figure: Figure) -> None:
        ax = quality_axes(figure, (low, high))
        size_axis(ax, places(rows)[0])
        if best is not None:
            ax.axhline(best, color=COLOUR["muted"], linestyle=(0, (1, 2)), linewidth=1.2)
        for index, run in enumerate(runs):
            own = [row for row in rows if row["run"] == run]
            ends = [row for row in own if row["ships"] or row["name"] == "baseline"]
            ax.plot(*places(ends), color=COLOUR[colour_of(index)], linewidth=1, linestyle=DASHED, zorder=1)
            for row in own:
                ax.plot(
                    *places([row]), zorder=4 if row["ships"] else 3,
                    **marker(look_of(row["name"]), filled=row["ships"], size=8 if row["ships"] else 6,
                             colour=colour_of(index)),
                )  # fmt: skip
        points = [
            PlotPoint(row["run"], colour_of(runs.index(row["run"])), row["bytes"], auc_of(row))
            for row in shipped
        ]
        labels(ax, points)

    words = ", ".join(
        f"{row['run']} {text.score(auc_of(row))} at {text.significant(row['bytes'] / 1e6)} MB"
        for row in shipped
    )
    return render(paint, name=name, label=f"Test AUC against size of what ships: {words}.", height=HEIGHT)


def _limits(rows: Sequence[ComparedRow]) -> tuple[float, float]:
    """Of the AUC axis, with a margin."""
    return around(places(rows)[1], 0.1)


def reaches(rows: Sequence[ComparedRow], bayes: float) -> bool:
    """Tell whether the figure reaches up to the best AUC possible without pressing all others together."""
    low, high = _limits(rows)
    return bayes <= high + (high - low)


def to_control(rows: Sequence[ComparedRow], runs: Sequence[str], name: str) -> Markup:
    """Draw AUC minus the control's of every fine-tuned model of each run; whiskers: deviation over seeds.

    Args:
        rows: Those with a difference to the control.
        runs: Names, in order.
        name: Unique name of the figure.
    """
    shown = [run for run in runs if any(row["run"] == run for row in rows)]
    height = ROW * len(shown) + 92
    methods = list(dict.fromkeys(method_of(row["name"]) for row in rows))

    def paint(figure: Figure) -> None:
        ax = row_axes(figure, shown, left=112, bottom=44, top=36, length=16)
        ax.axvline(0, color=COLOUR["amber"], linewidth=1.2, linestyle=DASHED, zorder=1)
        for row in rows:
            _difference(ax, row, shown.index(row["run"]) + _offset(method_of(row["name"]), methods))
        low, high = ax.get_xlim()
        # Wide enough that labels of four decimals tell its ticks apart.
        margin = 0.08 * (high - low) + max(0.0, LEAST_WIDTH - (high - low)) / 2
        ax.set_xlim(low - margin, high + margin)
        scale(ax.xaxis, "test AUC minus the control's", text.signed, MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.grid(axis="x")
        for index, name_of_method in enumerate(methods):
            left, top = 0.03 + 0.19 * (index % 5), 14 + 16 * (index // 5)
            figure.text(left, 1 - top / height, f"■ {short(name_of_method, 10)}", size=SMALL, va="center",
                        color=COLOUR[look_of(name_of_method).colour])  # fmt: skip

    words = ", ".join(f"{row['run']} {row['name']} {text.signed(row['vs_control']['mean'])}" for row in rows)
    return render(paint, name=name, label=f"Test AUC minus the control's: {words}.", height=height)


def _offset(name: str, methods: Sequence[str]) -> float:
    """Methods of a run lie below each other."""
    return 0.6 * ((methods.index(name) + 0.5) / len(methods) - 0.5)


def _difference(ax: Axes, row: ComparedRow, place: float) -> None:
    look, difference = look_of(row["name"]), row["vs_control"]
    mean, deviation = difference["mean"], difference.get("deviation", 0.0)
    ax.plot([mean - deviation, mean + deviation], [place, place], color=COLOUR[look.colour], linewidth=1.4)
    ax.plot([mean], [place], zorder=3, **marker(look, filled=row["ships"], size=7))
