"""Figures of spectra: one for each linear layer, one strip for all embedding tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, MaxNLocator

from afm_dist.report import text
from afm_dist.report.looks import look_of
from afm_dist.report.plots.canvas import (
    COLOUR,
    SMALL,
    WIDTH,
    above_rows,
    axes,
    beside,
    key,
    render,
    row_axes,
    scale,
)
from afm_dist.report.schema import Layer

HEIGHT = 400
LOG_FROM = 32
DECADES = 12
FEW = 8
KEY_LEFT, KEY_STEP = 26, 74
LEVELS = ((0.5, 1.0), (0.1, 0.66), (0.01, 0.4), (0.001, 0.2), (0.0, 0.07))
LEVEL_WORDS = ("≥ 50 %", "10–50 %", "1–10 %", "0.1–1 %", "< 0.1 %")


def linear(layer: Layer, name: str) -> Markup:
    """Draw eigenvalues on a logarithmic axis above the share that the first of them keep."""
    values = layer.get("eigenvalues") or []
    colour = COLOUR[look_of(layer["method"]).colour]

    def paint(figure: Figure) -> None:
        upper, lower = axes(figure, 58, 226, 16, 24), axes(figure, 58, 44, 16, 204)
        ordinals = range(1, len(values) + 1)
        wide = ", log scale" if layer["width"] > LOG_FROM else ""
        _component_axis(upper, layer, "")
        _component_axis(lower, layer, f"components kept{wide}")
        floor = values[0] * 10.0**-DECADES if values[0] > 0 else 1e-12
        visible = [(ordinal, value) for ordinal, value in zip(ordinals, values, strict=True) if value > floor]
        marker = "o" if len(visible) <= FEW else ""
        upper.plot(*zip(*visible, strict=True), color=colour, linewidth=1.8, marker=marker, markersize=5)
        upper.set_yscale("log")
        scale(upper.yaxis, "eigenvalue", text.power_of_ten, LogLocator(numticks=6))
        upper.tick_params(labelbottom=False)
        upper.annotate(
            f"rank {layer['rank']} of {layer['width']}, {text.share(layer['kept_energy'])} of variance",
            (layer["rank"], 1), (0, 5), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="right" if layer["rank"] > len(values) ** 0.5 else "left", va="bottom", color=colour,
        )  # fmt: skip
        lower.plot(
            ordinals, _cumulative(values), color=colour, linewidth=1.8, label="of variance (eigenvalues)"
        )
        lower.plot(
            ordinals, _cumulative([value**0.5 for value in values]),
            color=COLOUR["muted"], linewidth=1.5, linestyle=(0, (4, 2)), label="of singular values",
        )  # fmt: skip
        lower.set_ylim(0, 104)
        scale(lower.yaxis, "kept share", "{:.0f} %")
        lower.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=2, frameon=False, fontsize=SMALL,
                     borderpad=0.2, handlelength=1.6, columnspacing=1.2)  # fmt: skip

    label = (
        f"Spectrum of {layer['name']}: rank {layer['rank']} of {layer['width']} keeps "
        f"{text.share(layer['kept_energy'])} of the variance."
    )
    return render(paint, name=name, label=label, height=HEIGHT)


def _component_axis(ax: Axes, layer: Layer, label: str) -> None:
    ax.grid(axis="y")
    width, wide = layer["width"], layer["width"] > LOG_FROM
    limits = (0.93, width * 1.08) if wide else (0.5, width + 0.5)
    ax.set(xscale="log" if wide else "linear", xlim=limits)
    scale(ax.xaxis, label, "{:g}", None if wide else MaxNLocator(8, integer=True))
    colour = COLOUR[look_of(layer["method"]).colour]
    ax.axvspan(ax.get_xlim()[0], layer["rank"], color=colour, alpha=0.09, linewidth=0)
    ax.axvline(layer["rank"], color=colour, linewidth=1)


def _cumulative(values: Sequence[float]) -> list[float]:
    """Percent of the sum that the first 1, 2, … values make up; 100 when there is nothing to keep."""
    total = sum(values)
    return [100 * part / total if total > 0 else 100.0 for part in accumulate(values)]


def embeddings(layers: Sequence[Layer]) -> Markup:
    """Draw a row a table and a cell a component, shaded by its share of the table's variance."""
    height = 15 * len(layers) + 92
    colour = COLOUR[look_of(layers[0]["method"]).colour]
    widest = max(layer["width"] for layer in layers)

    def paint(figure: Figure) -> None:
        ax = row_axes(figure, names(layers), right=64, top=50)
        ax.set_xlim(0.5, widest + 0.5)
        for level, cells in enumerate(_cells_by_level(layers)):
            if cells:
                path = Path.make_compound_path(*cells)
                ax.add_patch(PathPatch(path, facecolor=colour, alpha=LEVELS[level][1], linewidth=0))
        for place, layer in enumerate(layers):
            edge = layer["rank"] + 0.5
            ax.plot([edge, edge], [place - 0.5, place + 0.5], color=COLOUR["ink"], linewidth=1.6,
                    solid_capstyle="butt")  # fmt: skip
            beside(ax, place, text.share(layer["kept_energy"]))
        scale(ax.xaxis, "component (the line is the chosen rank)", "{:g}", MaxNLocator(8, integer=True))
        ax.spines["bottom"].set_visible(False)
        above_rows(ax, "kept")
        heading = "share of the table's variance in each component"
        figure.text(
            KEY_LEFT / WIDTH, 1 - 10 / height, heading, color=COLOUR["muted"], size=SMALL, va="center"
        )
        for index, ((_, alpha), words) in enumerate(zip(LEVELS, LEVEL_WORDS, strict=True)):
            key(figure, KEY_LEFT + KEY_STEP * index, 28, words, facecolor=colour, alpha=alpha)

    label = "Share of each embedding table's variance by component. Kept: " + ", ".join(
        f"{layer['name']} rank {layer['rank']} of {layer['width']} {text.share(layer['kept_energy'])}"
        for layer in layers
    )
    return render(paint, name="embedding-spectra", label=label, height=height)


def names(layers: Sequence[Layer]) -> list[str]:
    """Shorten names of layers as far as they tell them apart: ``C1`` for ``embedding.table[C1]``."""
    tails = [re.split(r"[.\[]", layer["name"].rstrip("]"))[-1] for layer in layers]
    distinct = len(set(tails)) == len(tails)
    return [tail if distinct else layer["name"] for tail, layer in zip(tails, layers, strict=True)]


def _cells_by_level(layers: Sequence[Layer]) -> list[list[Path]]:
    cells: list[list[Path]] = [[] for _ in LEVELS]
    for place, layer in enumerate(layers):
        values = layer.get("eigenvalues") or []
        total = sum(values)
        for component, value in enumerate(values, start=1):
            share = value / total if total > 0 else 0.0
            level = next(index for index, (least, _) in enumerate(LEVELS) if share >= least)
            low, high = component - 0.47, component + 0.47
            corners = [(low, place - 0.44), (high, place - 0.44), (high, place + 0.44), (low, place + 0.44)]
            cells[level].append(Path([*corners, corners[0]], closed=True))
    return cells
