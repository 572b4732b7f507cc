"""A matplotlib figure as SVG that lives inside a page: its colours and fonts, light and dark.

Figures are drawn in placeholder colours, one for each of the stylesheet's, that become CSS variables
in the SVG; so a page restyles them as it does its text. No pyplot, no dates, no random ids: equal input gives
equal bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, get_args

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import Locator, MaxNLocator, NullLocator

from afm_dist.compression.look import Colour, Look
from afm_dist.report.dataset_words import cut

WIDTH = 440
FONT = 12.0
SMALL = 11.0
POINTS_PER_INCH = 72

DASHED: Any = (0, (4, 3))
COLOUR = {
    name: f"#0101{index:02x}"
    for index, name in enumerate(("ink", "muted", "grid", "surface", *get_args(Colour)), start=1)
}
"""Of the stylesheet, by name: what stands for each of them while a figure is drawn."""

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "afm-dist",
    "text.parse_math": False,
    "font.size": FONT,
    "axes.edgecolor": COLOUR["muted"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.labelsize": FONT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": COLOUR["grid"],
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": COLOUR["ink"],
    "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["muted"],
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
}


def render(paint: Callable[[Figure], None], *, name: str, label: str, height: int) -> Markup:
    """Draw a figure and return it as inline SVG.

    Args:
        paint: Draws on an empty figure.
        name: Unique on the page; prefixes the ids inside the SVG.
        label: What the figure shows, for those who cannot see it.
        height: In the units in which the width is ``WIDTH`` and text is ``FONT`` tall.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has its own fonts
        figure = Figure(figsize=(WIDTH / POINTS_PER_INCH, height / POINTS_PER_INCH))
        paint(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), name, label, height)


def _inline(document: str, name: str, label: str, height: int) -> Markup:
    body = document.partition("<svg")[2].partition(">")[2]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', body))
    body = re.sub(
        r' id="([\w.-]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", body
    )
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    body = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    for colour, placeholder in COLOUR.items():
        body = re.sub(rf"(fill|stroke): {placeholder}", rf"\1: var(--{colour})", body)
    opening = f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height}">'
    return Markup(opening + body.strip())


def axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Make axes with the given margins, in the figure's units."""
    width, height = (side * POINTS_PER_INCH for side in figure.get_size_inches())
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )


def row_axes(
    figure: Figure,
    names: Sequence[str],
    *,
    left: float = 92,
    bottom: float = 42,
    right: float = 16,
    top: float = 50,
    length: int = 14,
) -> Axes:
    """Make axes with a named row a field or a run, from top to bottom.

    Args:
        figure: It is drawn on.
        names: Of the rows.
        left: Margin in the figure's units, as the next three.
        bottom: Below.
        right: On the right.
        top: Above.
        length: Most letters of a name.
    """
    ax = axes(figure, left, bottom, right, top)
    ax.set_ylim(len(names) - 0.5, -0.5)
    row_names(ax, names, length)
    return ax


def row_names(ax: Axes, names: Sequence[str], length: int = 14) -> None:
    """Name the rows of a figure, in its ink and without a line beside them."""
    ax.set_yticks(range(len(names)), [short(name, length) for name in names])
    ax.tick_params(axis="y", labelcolor=COLOUR["ink"])
    ax.spines["left"].set_visible(False)


def beside(ax: Axes, place: float, words: str, end: float | None = None) -> None:
    """Write words at the end of a row: behind its bar, or without one behind the axes."""
    at = (1.0, "axes fraction") if end is None else (end, "data")
    ax.annotate(words, (at[0], place), (6 if end is None else 5, 0), xycoords=(at[1], "data"),
                textcoords="offset points", va="center", size=SMALL)  # fmt: skip


def above_rows(ax: Axes, words: str) -> None:
    """Write above the rows what the words behind the axes are."""
    ax.annotate(words, (1, 1), (6, 6), xycoords="axes fraction", textcoords="offset points",
                color=COLOUR["muted"], size=SMALL)  # fmt: skip


def key(figure: Figure, left: float, top: float, words: str, **shade: Any) -> None:
    """Draw an entry of a key: a square of a shade, and what it stands for.

    Args:
        figure: It is drawn on.
        left: In the figure's units.
        top: Of the middle of the words.
        words: Behind the square.
        shade: Of the square, for matplotlib.
    """
    width, height = (side * POINTS_PER_INCH for side in figure.get_size_inches())
    place = (left / width, 1 - (top + 5) / height)
    figure.add_artist(
        Rectangle(place, 10 / width, 10 / height, linewidth=0, transform=figure.transFigure, **shade)
    )
    figure.text((left + 14) / width, 1 - top / height, words, size=SMALL, va="center")


def marker(look: Look, *, filled: bool, size: float = 7.5, colour: str = "") -> dict[str, Any]:
    """Give the style of a model's point: the shape and the colour of its method.

    Args:
        look: Of the method.
        filled: Or hollow.
        size: In points.
        colour: Instead of the method's.
    """
    edge = COLOUR[colour or look.colour]
    return {
        "marker": look.marker,
        "markersize": size,
        "markerfacecolor": edge if filled else COLOUR["surface"],
        "markeredgecolor": edge,
        "markeredgewidth": 1.4,
        "linestyle": "none",
        "clip_on": False,
    }


def scale(axis: Axis, label: str, shown: Callable[[float], str] | str, ticks: Locator | None = None) -> None:
    """Set an axis, whose kind and limits are set.

    Args:
        axis: Horizontal or vertical.
        label: Beside it.
        shown: Writes the value of a tick: a function, or a format such as ``{:.2f}``.
        ticks: Where they are; None: where matplotlib puts them. There are no minor ones.
    """
    write = shown.format if isinstance(shown, str) else shown
    axis.set_label_text(label)
    if ticks is not None:
        axis.set_major_locator(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: write(value))


def around(values: Sequence[float], share: float) -> tuple[float, float]:
    """Find limits of an axis of AUC around some values, with a margin of a share of their range."""
    low, high = min(values), max(values)
    margin = share * max(high - low, 0.001)
    return low - margin, high + margin


def auc_axis(ax: Axes, label: str) -> None:
    """Mark round AUC values, always with four decimals."""
    scale(ax.yaxis, label, "{:.4f}", MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.grid(axis="y")


def leader(gap: float) -> dict[str, Any]:
    """Give the style of the thin line from a label to a point, ending ``gap`` before it."""
    return {"arrowstyle": "-", "color": COLOUR["muted"], "linewidth": 0.6, "shrinkA": 1, "shrinkB": gap}


def short(label: object, length: int = 22) -> str:
    """Put a label on one line, cut in the middle when it is long."""
    return cut(" ".join(str(label).split()), length)


def spread_out(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions as little as possible so that neighbours are ``gap`` apart, within bounds.

    Args:
        positions: Wanted positions, in any order; the result keeps the order.
        gap: Smallest distance between two results.
        low: Lower bound of the results.
        high: Upper bound, kept when there is room for all.

    Returns:
        The least-squares solution (isotonic regression by pooling neighbours that collide).
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    pools: list[tuple[float, int]] = []
    for place, index in enumerate(order):
        total, size = positions[index] - place * gap, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / size:
            previous = pools.pop()
            total, size = total + previous[0], size + previous[1]
        pools.append((total, size))
    ceiling = max(low, high - (len(positions) - 1) * gap)
    settled = [min(max(total / size, low), ceiling) for total, size in pools for _ in range(size)]
    result = [0.0] * len(positions)
    for place, index in enumerate(order):
        result[index] = settled[place] + place * gap
    return result
