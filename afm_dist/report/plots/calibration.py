"""Figure of calibration: clicks a model expects against clicks there were, by tenths of the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from afm_dist.report import text
from afm_dist.report.looks import look_of
from afm_dist.report.plots.canvas import COLOUR, DASHED, SMALL, axes, render, scale
from afm_dist.report.schema import ReliabilityBin, Row

HEIGHT = 430
DECADES = 4
"""Bins with rates further below the highest one are left out: on so few clicks they say nothing."""
WITHIN = 1.96
"""Deviations of a normal variable within which 95 % of its values lie."""


def reliability(rows: Sequence[Row]) -> Markup:
    """Draw observed against predicted rate, and below their ratio, which shows what the diagonal hides.

    Args:
        rows: Those with a reliability table; the last one is what ships.
    """
    rates = [(row, _rates(row["reliability"])) for row in rows]
    highest = max(rate for _, points in rates for point in points for rate in point)
    floor = highest * 10.0**-DECADES
    shown = [(row, [point for point in points if min(point) >= floor]) for row, points in rates]
    lowest = min((rate for _, points in shown for point in points for rate in point), default=floor)
    limits = (lowest / 1.3, min(highest * 1.3, 1.0))

    def paint(figure: Figure) -> None:
        upper, lower = axes(figure, 58, 176, 16, 12), axes(figure, 58, 44, 16, 272)
        _rate_axis(upper, limits, "")
        _rate_axis(lower, limits, "predicted clicks")
        upper.set(yscale="log", ylim=limits)
        scale(upper.yaxis, "observed clicks", _percent, FixedLocator(_ticks(*limits)))
        upper.tick_params(labelbottom=False)
        upper.plot(limits, limits, color=COLOUR["muted"], linewidth=1, linestyle=DASHED, zorder=1)
        _chance(lower, rows[-1]["reliability"], floor)
        lower.axhline(1, color=COLOUR["muted"], linewidth=1, linestyle=DASHED, zorder=1)
        scale(lower.yaxis, "observed /\npredicted", "{:.2f}", MaxNLocator(5))
        for row, points in shown:
            look = look_of(row["name"])
            style: dict[str, Any] = {
                "color": COLOUR[look.colour],
                "marker": look.marker,
                "markersize": 5,
                "linewidth": 1.4,
            }
            predicted = [point[0] for point in points]
            upper.plot(predicted, [point[1] for point in points], label=row["name"], **style)
            lower.plot(predicted, [observed / mean for mean, observed in points], **style)
        upper.legend(loc="upper left", frameon=False, fontsize=SMALL, borderpad=0.2, handlelength=1.8)

    values = ", ".join(
        f"{row['name']} {text.score(row['calibration'])}" for row in rows if "calibration" in row
    )
    label = (
        f"Observed against predicted clicks by tenths of the test rows. Predicted over observed: {values}."
    )
    return render(paint, name="calibration", label=label, height=HEIGHT)


def _rates(bins: Sequence[ReliabilityBin]) -> list[tuple[float, float]]:
    """Predicted and observed rate of each bin."""
    return [(each["predicted"] / each["weight"], each["observed"] / each["weight"]) for each in bins]


def _rate_axis(ax: Axes, limits: tuple[float, float], label: str) -> None:
    ax.set(xscale="log", xlim=limits)
    scale(ax.xaxis, label, _percent, FixedLocator(_ticks(*limits)))
    ax.grid()


def _percent(rate: float) -> str:
    return f"{100 * rate:g} %"


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every power of ten between two rates; over many decades the powers alone."""
    digits = (1, 2, 5) if high / low < 200 else (1,)
    powers = range(math.floor(math.log10(low)), 1)
    return [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]


def _chance(ax: Axes, bins: Sequence[ReliabilityBin], floor: float) -> None:
    """Where 95 % of the ratios of a perfectly calibrated model with these predictions would lie."""
    known = [(*rates, each["weight"]) for rates, each in zip(_rates(bins), bins, strict=True)]
    edges = [
        (rate, WITHIN * math.sqrt(max(1 - rate, 0) / (rate * weight)))
        for rate, _, weight in known
        if rate >= floor
    ]
    rates, spreads = [rate for rate, _ in edges], [spread for _, spread in edges]
    below, above = [1 - spread for spread in spreads], [1 + spread for spread in spreads]
    ax.fill_between(rates, below, above, color=COLOUR["muted"], alpha=0.18, linewidth=0)
