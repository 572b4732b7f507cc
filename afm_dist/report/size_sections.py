"""Sections about what was compressed: linear layers and embedding tables, their spectra and bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

from afm_dist.compression.registry import facts_by_name
from afm_dist.report import text
from afm_dist.report.looks import marked
from afm_dist.report.plots import spectra, tables
from afm_dist.report.schema import Layer, Report
from afm_dist.report.view import (
    Beside,
    Block,
    Folded,
    Grid,
    GridColumn,
    Paragraph,
    Plot,
    code,
    grid,
    numbers,
    texts,
)

FOLDED_FROM = 6
WORDS = (
    "“Variance kept” is a share of the sum of eigenvalues. The share of singular values (square roots of the "
    "eigenvalues) is the other common measure; it is never larger and usually asks for far more components."
)


def linear_layers(report: Report) -> list[Block]:
    """Show spectrum, rank and kept share of each compressed linear layer."""
    layers = [layer for layer in report.get("layers", ()) if layer["kind"] == "linear"]
    plots = [
        Plot(
            partial(spectra.linear, layer, f"spectrum-{index}"),
            f"Spectrum of {layer['name']}",
            "Eigenvalues of the covariance of the layer's outputs; below, what the first of them keep.",
        )
        for index, layer in enumerate(_plotted(layers))
    ]
    words = [Paragraph(WORDS)] if any("kept_energy" in layer for layer in layers) else []
    return [*words, *([Beside(plots)] if plots else []), *_grids(layers, "linear layers")]


def embeddings(report: Report) -> list[Block]:
    """Show the spectra of all tables in one strip, and the bytes of each field; fold details away."""
    layers = [layer for layer in report.get("layers", ()) if layer["kind"] == "embedding"]
    plots: list[Block] = []
    if _plotted(layers):
        plots.append(
            Plot(
                partial(spectra.embeddings, _plotted(layers)),
                "Where the variance of each table lies",
                "Shares of the variance (sum of eigenvalues) over the rows of the log.",
            )
        )
    if report.get("tables"):
        sizes = report["tables"]
        before, after = (sum(table[key] for table in sizes) for key in ("bytes_before", "bytes_after"))
        caption = f"All fields: {text.shrinkage(before, after)}. Linear axis."
        plots.append(Plot(partial(tables.bytes_by_field, sizes), "Bytes of each field", caption))
    details: list[Block] = _grids(layers, "embedding tables")
    if len(layers) > FOLDED_FROM:
        details = [Folded(f"All {len(layers)} tables in numbers", details)]
    return [*([Beside(plots)] if plots else []), *details]


def _plotted(layers: Sequence[Layer]) -> list[Layer]:
    """Choose those with a rank and a spectrum; of several methods those of the first."""
    known = [layer for layer in layers if layer.get("eigenvalues") and "rank" in layer]
    return [layer for layer in known if layer["method"] == known[0]["method"]]


def _grids(layers: Sequence[Layer], what: str) -> list[Block]:
    """List the layers with the columns of their methods; those that have the same are one table."""
    tables: dict[tuple[str, ...], list[tuple[Layer, Mapping[str, str | int | float]]]] = {}
    for layer in layers:
        shown = facts_by_name(layer["method"]).columns(layer)
        tables.setdefault(tuple(shown), []).append((layer, shown))
    return [
        _grid(f"{'Other' if index else 'Compressed'} {what}", titles, rows)
        for index, (titles, rows) in enumerate(tables.items())
    ]


def _grid(
    caption: str, titles: Sequence[str], rows: Sequence[tuple[Layer, Mapping[str, str | int | float]]]
) -> Grid:
    words = {title for title in titles if any(_is_text(shown[title]) for _, shown in rows)}
    return grid(
        caption,
        [
            *texts("Layer", "Method"),
            *numbers("Width"),
            *(GridColumn(one, text=one in words) for one in titles),
        ],
        [
            [code(layer["name"]), marked(layer["method"]), str(layer["width"]), *map(_value, shown.values())]
            for layer, shown in rows
        ],
    )


def _is_text(value: str | int | float) -> bool:
    return isinstance(value, str) and re.search("[a-z]", value) is not None


def _value(value: str | int | float) -> str:
    return text.share(value) if isinstance(value, float) else str(value)
