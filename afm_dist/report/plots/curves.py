"""Figure of a round of fine-tuning: validation AUC against step, one line a candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import dropwhile

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from afm_dist.report import text
from afm_dist.report.looks import look_of
from afm_dist.report.plots.canvas import (
    COLOUR,
    DASHED,
    SMALL,
    around,
    auc_axis,
    axes,
    leader,
    render,
    scale,
    short,
    spread_out,
)
from afm_dist.report.schema import CurvePoint, FineTuningRecord

HEIGHT = 320
MARGINS = (58.0, 44.0, 128.0, 12.0)
LINE = 15.0
FAR_BELOW = 1.0
MANY = 40


def validation_auc(
    candidates: Sequence[FineTuningRecord], baseline: float | None, name: str, *, whole: bool = False
) -> Markup:
    """Draw the curves of one round; a ring marks the step that was kept.

    Args:
        candidates: Those fine-tuned in this round.
        baseline: Validation AUC of the uncompressed model as trained, drawn as a level.
        name: Unique name of the figure.
        whole: Show also starts far below what the curves reach.
    """

    def paint(figure: Figure) -> None:
        ax = axes(figure, *MARGINS)
        low, high = _limits(candidates, baseline, whole=whole)
        last = max(candidate["curve"][-1]["step"] for candidate in candidates)
        ax.set(xlim=(-0.03 * last, max(last, 1) * 1.03), ylim=(low, high))
        auc_axis(ax, "validation AUC")
        scale(ax.xaxis, "step", "{:,.0f}", MaxNLocator(5, integer=True))
        if baseline is not None:
            ax.axhline(baseline, color=COLOUR["grey"], linewidth=1.2, linestyle=DASHED)
        for candidate in candidates:
            _curve(ax, candidate)
        _labels(ax, candidates, baseline)
        _starts_below(ax, candidates, low)

    label = "Validation AUC of the kept step: " + ", ".join(
        f"{one['name']} {text.score(kept(one)['validation_auc'])} at step {one['kept_step']}"
        for one in candidates
    )
    return render(paint, name=name, label=label, height=HEIGHT)


def kept(candidate: FineTuningRecord) -> CurvePoint:
    """Find the point of a curve that was kept."""
    return next(point for point in candidate["curve"] if point["step"] == candidate["kept_step"])


def _limits(
    candidates: Sequence[FineTuningRecord], baseline: float | None, *, whole: bool
) -> tuple[float, float]:
    """Limits set by what the curves reach; a start far below them leaves the figure."""
    ends = [kept(candidate)["validation_auc"] for candidate in candidates]
    ends += [candidate["curve"][-1]["validation_auc"] for candidate in candidates]
    ends += [] if baseline is None else [baseline]
    near = -math.inf if whole else min(ends) - FAR_BELOW * max(max(ends) - min(ends), 0.001)
    inside = list(ends)
    for candidate in candidates:
        values = [point["validation_auc"] for point in candidate["curve"]]
        inside += dropwhile(lambda value: value < near, values)
    return around(inside, 0.08)


def _curve(ax: Axes, candidate: FineTuningRecord) -> None:
    look = look_of(candidate["name"])
    colour = COLOUR[look.colour]
    points = [(point["step"], point["validation_auc"]) for point in candidate["curve"]]
    ax.plot(
        *zip(*points, strict=True), color=colour, linewidth=1.8,
        marker=look.marker if len(points) <= MANY else "", markersize=4,
    )  # fmt: skip
    end = kept(candidate)
    ax.plot(
        [end["step"]], [end["validation_auc"]], marker="o", markersize=12, linestyle="none",
        markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.6, clip_on=False, zorder=4,
    )  # fmt: skip


def _labels(ax: Axes, candidates: Sequence[FineTuningRecord], baseline: float | None) -> None:
    """Names at the right ends of the lines, moved apart where they would collide."""
    ends = [
        (short(candidate["name"], 14), look_of(candidate["name"]).colour, candidate["curve"][-1])
        for candidate in candidates
    ]
    lines = [(label, colour, point["validation_auc"], point["step"]) for label, colour, point in ends]
    if baseline is not None:
        lines.append(("baseline", "grey", baseline, max(line[3] for line in lines)))
    low, high = ax.get_ylim()
    gap = LINE * (high - low) / (HEIGHT - MARGINS[1] - MARGINS[3])
    places = spread_out([line[2] for line in lines], gap, low, high)
    last = max(line[3] for line in lines)
    for (label, colour, value, step), place in zip(lines, places, strict=True):
        ax.annotate(
            f"{label} {text.score(value)}", (step, value), (last + 0.1 * max(last, 1), place), va="center",
            annotation_clip=False, size=SMALL, color=COLOUR[colour], arrowprops=leader(8),
        )  # fmt: skip


def _starts_below(ax: Axes, candidates: Sequence[FineTuningRecord], low: float) -> None:
    """Say where the curves start that leave the figure, in the lower corner they do not cross."""
    middle = sum(ax.get_xlim()) / 2
    lines = {True: 0, False: 0}
    for candidate in candidates:
        start = candidate["curve"][0]["validation_auc"]
        if start >= low:
            continue
        entered = next(point["step"] for point in candidate["curve"] if point["validation_auc"] >= low)
        right = entered < middle
        ax.annotate(
            f"{short(candidate['name'], 14)} starts at {text.score(start)} ↓",
            (1 if right else 0, 0),
            (-2 if right else 4, 5 + LINE * lines[right]),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right" if right else "left",
            size=SMALL,
            color=COLOUR[look_of(candidate["name"]).colour],
        )
        lines[right] += 1
