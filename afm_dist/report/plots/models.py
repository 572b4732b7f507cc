"""Figures of the rows: AUC against bytes, throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from afm_dist.report import text
from afm_dist.report.looks import look_of
from afm_dist.report.plots.canvas import (
    COLOUR,
    DASHED,
    POINTS_PER_INCH,
    SMALL,
    WIDTH,
    around,
    auc_axis,
    axes,
    beside,
    leader,
    marker,
    render,
    row_names,
    scale,
    short,
    spread_out,
)
from afm_dist.report.schema import Row
from afm_dist.report.summary import auc_of, ordered

HEIGHT = 340
MARGINS = (58.0, 44.0, 84.0, 12.0)
AT_THE_EDGE = 0.85
ASIDE, BESIDE = 26.0, 14.0
LETTER = 6.6
"""Mean width of a letter of a label."""
LINE = 15.0
LOG_FROM = 30
FAR_BELOW = 1.0


def auc_against_bytes(rows: Sequence[Row], bayes_auc: float | None) -> Markup:
    """Draw AUC against bytes, hollow before fine-tuning, filled after, a line a model; all have an AUC."""

    def paint(figure: Figure) -> None:
        low, high = _auc_limits(rows, bayes_auc)
        ax = quality_axes(figure, (low, high))
        size_axis(ax, [row["bytes"] / 1e6 for row in rows])
        if bayes_auc is not None and bayes_auc <= high:
            ax.axhline(bayes_auc, color=COLOUR["muted"], linestyle=(0, (1, 2)), linewidth=1.2)
            words = "best possible (Bayes)"
            ax.annotate(words, (0.5, bayes_auc), (0, -4), xycoords=("axes fraction", "data"), ha="center",
                        textcoords="offset points", va="top", size=SMALL, color=COLOUR["muted"])  # fmt: skip
        for row in rows:
            _point(ax, row, low)
        _paths_of_finetuning(ax, rows, low)
        _far_below(ax, rows, low)
        labels(ax, points_of(_labelled(rows)))

    values = ", ".join(
        f"{row['name']} {text.STAGE_WORDS[row['stage']]} {text.score(row['auc'])} "
        f"at {text.megabytes(row['bytes'])} MB"
        for row in ordered(list(rows))
    )
    return render(paint, name="auc-bytes", label=f"Test AUC against size: {values}.", height=HEIGHT)


def _auc_limits(rows: Sequence[Row], bayes_auc: float | None) -> tuple[float, float]:
    """Limits that show small differences; a model far below them is marked at the lower edge."""
    settled = [auc_of(row) for row in rows if row["stage"] != "before-finetune"]
    low, high = min(settled), max(settled)
    reach = max(high - low, 0.001)
    low = min(low, *(auc_of(row) for row in rows if auc_of(row) >= low - FAR_BELOW * reach), low)
    if bayes_auc is not None and high <= bayes_auc <= high + 1.5 * reach:
        high = bayes_auc
    return around((low, high), 0.12)


def quality_axes(figure: Figure, limits: tuple[float, float], *, top: float = MARGINS[3]) -> Axes:
    """Make axes of AUC against bytes, between two AUCs, with room for names on the right."""
    ax = axes(figure, *MARGINS[:3], top)
    ax.set_ylim(limits)
    auc_axis(ax, "test AUC")
    return ax


def places(rows: Sequence[Mapping[str, Any]], low: float = 0.0) -> tuple[list[float], list[float]]:
    """Give MB and AUC of models that have an AUC; one below ``low`` is drawn there."""
    return [row["bytes"] / 1e6 for row in rows], [max(auc_of(row), low) for row in rows]


def size_axis(ax: Axes, sizes: Sequence[float]) -> None:
    """Set the axis of sizes in MB: from 0 to the largest, or logarithmic where they differ much."""
    wide = max(sizes) / min(sizes) > LOG_FROM
    limits = (min(sizes) / 1.8, max(sizes) * 1.8) if wide else (0, max(sizes) * 1.08)
    ax.set(xscale="log" if wide else "linear", xlim=limits)
    scale(ax.xaxis, "size, MB", "{:,g}", None if wide else MaxNLocator(6))


def _point(ax: Axes, row: Row, low: float) -> None:
    style = marker(look_of(row["name"]), filled=row["stage"] != "before-finetune")
    if auc_of(row) < low:
        style["marker"] = "v"
    ax.plot(*places([row], low), zorder=3, **style)


def _place(ax: Axes, size: float) -> float:
    """Where a size lies on its axis: 0 on the left, 1 on the right."""
    return float(ax.transAxes.inverted().transform(ax.transData.transform((size / 1e6, 1)))[0])


def _on_the_right(ax: Axes, row: Row) -> bool:
    """Whether a row's point lies in the right half, so that words inside the axes go to its left."""
    return _place(ax, row["bytes"]) > 0.5


def _far_below(ax: Axes, rows: Sequence[Row], low: float) -> None:
    """Say how far below the figure the models are that are marked at its lower edge."""
    lines = {True: 0, False: 0}
    for row in rows:
        if auc_of(row) < low:
            right = _on_the_right(ax, row)
            ax.annotate(
                f"{short(row['name'])}: {text.score(row['auc'])} ↓",
                (row["bytes"] / 1e6, low),
                (-9 if right else 9, 4 + LINE * lines[right]),
                textcoords="offset points",
                ha="right" if right else "left",
                size=SMALL,
                color=COLOUR[look_of(row["name"]).colour],
            )
            lines[right] += 1


def _paths_of_finetuning(ax: Axes, rows: Sequence[Row], low: float) -> None:
    """A line from each model before fine-tuning to the same model after it."""
    before = {row["name"]: row for row in rows if row["stage"] == "before-finetune"}
    for row in rows:
        start = before.get(row["name"])
        if start is not None and row["stage"] == "after-finetune":
            ax.plot(
                *places([start, row], low),
                color=COLOUR[look_of(row["name"]).colour], linewidth=1.2, zorder=2, clip_on=False,
            )  # fmt: skip


def _labelled(rows: Sequence[Row]) -> list[Row]:
    """One row a name: its latest stage."""
    return list({row["name"]: row for row in ordered(list(rows))}.values())


class PlotPoint(NamedTuple):
    """A point to be named in a figure of AUC against bytes."""

    words: str
    colour: str
    bytes: float
    auc: float


def labels(ax: Axes, points: Sequence[PlotPoint]) -> None:
    """Name each point on the side with more room; names are moved apart where they would collide."""
    low, high = ax.get_ylim()
    unit = (high - low) / (ax.bbox.height / ax.figure.dpi * POINTS_PER_INCH)
    bottom = low + (1.4 if any(point.auc < low for point in points) else 0.4) * LINE * unit
    for group in _groups(ax, points):
        wanted = [max(point.auc, low) for point, _ in group]
        places = spread_out(wanted, LINE * unit, bottom, high)
        for (point, offset), wish, place in zip(group, wanted, places, strict=True):
            ax.annotate(
                short(point.words),
                (point.bytes / 1e6, wish),
                (offset, (place - wish) / unit),
                textcoords="offset points",
                ha="left" if offset > 0 else "right",
                va="center",
                annotation_clip=False,
                color=COLOUR[point.colour],
                arrowprops=leader(5),
            )


def _groups(ax: Axes, points: Sequence[PlotPoint]) -> list[list[tuple[PlotPoint, float]]]:
    """Points whose labels may collide, each with how far to its right the label begins (or left it ends).

    Points on the left are named to their right, the others to their left, those at the right edge in the
    margin. The first two are one group where the words of one reach those of the other.
    """
    width = WIDTH - MARGINS[0] - MARGINS[2]
    left = [point for point in points if _place(ax, point.bytes) < 0.5]
    edge = [point for point in points if _place(ax, point.bytes) >= AT_THE_EDGE]
    middle = [point for point in points if point not in left and point not in edge]
    ends = [_place(ax, point.bytes) * width + ASIDE + LETTER * len(short(point.words)) for point in left]
    starts = [_place(ax, point.bytes) * width - ASIDE - LETTER * len(short(point.words)) for point in middle]
    parts = [[(point, ASIDE) for point in left], [(point, -ASIDE) for point in middle]]
    if ends and starts and max(ends) > min(starts):
        parts = [[*parts[0], *parts[1]]]
    return [*parts, [(point, BESIDE) for point in edge]]


def points_of(rows: Sequence[Row]) -> list[PlotPoint]:
    """Make points of rows, by their names and in the colours of their methods."""
    return [PlotPoint(row["name"], look_of(row["name"]).colour, row["bytes"], auc_of(row)) for row in rows]


def throughput(rows: Sequence[Row]) -> Markup:
    """Draw throughput over the baseline's as bars, with the smallest and largest measurement."""
    shown = _labelled(rows)
    height = 34 * len(shown) + 56

    def paint(figure: Figure) -> None:
        ax = axes(figure, 92, 44, 16, 8)
        longest = max(row.get("throughput_ratio_max", row["throughput_ratio"]) for row in shown)
        ax.set(xlim=(0, max(longest, 1.0) * 1.5), ylim=(len(shown) - 0.4, -0.6))
        ax.axvline(1, color=COLOUR["grey"], linewidth=1, linestyle=DASHED, zorder=0)
        for place, row in enumerate(shown):
            _bar(ax, place, row)
        row_names(ax, [row["name"] for row in shown])
        for tick, row in zip(ax.get_yticklabels(), shown, strict=True):
            tick.set_color(COLOUR[look_of(row["name"]).colour])
            tick.set_fontsize(12)
        ticks = MaxNLocator(6, steps=[1, 2, 5, 10])
        scale(ax.xaxis, "rows per second over the baseline's", "{:g}×", ticks)

    values = ", ".join(f"{row['name']} {text.ratio(row['throughput_ratio'])}" for row in shown)
    label = f"Throughput over the baseline's: {values}."
    return render(paint, name="throughput", label=label, height=height)


def _bar(ax: Axes, place: int, row: Row) -> None:
    value = row["throughput_ratio"]
    low, high = row.get("throughput_ratio_min", value), row.get("throughput_ratio_max", value)
    ax.barh(place, value, height=0.56, color=COLOUR[look_of(row["name"]).colour], alpha=0.85, linewidth=0)
    if high > low:
        ax.plot([low, high], [place, place], color=COLOUR["ink"], linewidth=1.4, zorder=3)
        for end in (low, high):
            ax.plot([end, end], [place - 0.13, place + 0.13], color=COLOUR["ink"], linewidth=1.4, zorder=3)
    words = text.ratio(value)
    if high > low:
        words += f" ({text.spread(low, high)})"
    beside(ax, place, words, high)
