"""Figures of vocabularies: where the training rows lie among the ids, and how many ids there are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from afm_dist.dataset.description import CategoricalField
from afm_dist.report import text
from afm_dist.report.dataset_words import percent
from afm_dist.report.plots.canvas import COLOUR, above_rows, beside, key, render, row_axes, scale

SHADES = (1.0, 0.75, 0.54, 0.36, 0.22, 0.11)
HEAD_WORDS = ("1st id", "to 10th", "to 100th", "to 1,000th", "to 10,000th", "rarer", "unknown")
KEY_LEFT, KEY_STEP, KEY_PER_LINE = 26, 100, 4
ROW = 15


def rows_by_rank(fields: Sequence[CategoricalField]) -> Markup:
    """Draw a bar a field: the training rows by how frequent their id is, the unknown last."""
    height = ROW * len(fields) + 112

    def paint(figure: Figure) -> None:
        ax = row_axes(figure, [field.name for field in fields], right=64, top=70)
        ax.set_xlim(0, 100)
        for place, field in enumerate(fields):
            edges = [0.0, *field.heads, field.coverage, 1.0]
            for index, (low, high) in enumerate(pairwise(edges)):
                ax.barh(place, 100 * (high - low), left=100 * low, height=0.76, linewidth=0,
                        **_shade_of_rows(index))  # fmt: skip
            beside(ax, place, f"{percent(field.coverage)} %")
        scale(ax.xaxis, "training rows", "{:.0f} %")
        above_rows(ax, "coverage")
        for index, words in enumerate(HEAD_WORDS):
            line, place = divmod(index, KEY_PER_LINE)
            key(figure, KEY_LEFT + KEY_STEP * place, 12 + 18 * line, words, **_shade_of_rows(index))

    label = "Training rows by how frequent their id is. Coverage: " + ", ".join(
        f"{field.name} {percent(field.coverage)} %" for field in fields
    )
    return render(paint, name="rows-by-rank", label=label, height=height)


def ids_by_field(fields: Sequence[CategoricalField]) -> Markup:
    """Draw two bars a field, the ids that make up 90 % of the training rows inside all of them.

    The axis is linear, as bytes are: the figure is there to show which fields hold the ids.
    """
    height = ROW * len(fields) + 112
    words = ("ids that make up 90 % of the training rows", "the others", "all ids make up less")

    def paint(figure: Figure) -> None:
        ax = row_axes(figure, [field.name for field in fields], right=16, top=70)
        ax.set_xlim(0, 1.25 * max(field.cardinality for field in fields))
        for place, field in enumerate(fields):
            needed = field.ids_for_90_percent
            everything = _shade_of_ids(2 if needed is None else 1)
            ax.barh(place, field.cardinality, height=0.76, linewidth=0, **everything)
            ax.barh(place, needed or 0, height=0.76, linewidth=0, **_shade_of_ids(0))
            beside(ax, place, text.count(field.cardinality), field.cardinality)
        scale(ax.xaxis, "ids", "{:,.0f}", MaxNLocator(4, integer=True))
        places = ((KEY_LEFT, 12), (KEY_LEFT, 30), (KEY_LEFT + KEY_STEP, 30))
        for index, (left, top) in enumerate(places):
            key(figure, left, top, words[index], **_shade_of_ids(index))

    label = "Ids by field: " + ", ".join(f"{field.name} {text.count(field.cardinality)}" for field in fields)
    return render(paint, name="ids-by-field", label=label, height=height)


def _shade_of_rows(index: int) -> dict[str, Any]:
    if index < len(SHADES):
        return {"color": COLOUR["blue"], "alpha": SHADES[index]}
    return {"color": COLOUR["amber"], "alpha": 0.8}


def _shade_of_ids(index: int) -> dict[str, Any]:
    return {"color": COLOUR["amber" if index == 2 else "blue"], "alpha": (1.0, 0.3, 0.5)[index]}
