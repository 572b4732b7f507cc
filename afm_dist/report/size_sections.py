"""Sections about what was compressed: linear layers and embedding tables, their spectra and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from afm_dist.report import text
from afm_dist.report.looks import marked
from afm_dist.report.plots import spectra, tables
from afm_dist.report.schema import Layer, Report
from afm_dist.report.view import (
    Beside,
    Block,
    Folded,
    Grid,
    Inline,
    Paragraph,
    Plot,
    code,
    grid,
    numbers,
    texts,
)

SHARES = ("0.9", "0.95", "0.99")
FOLDED_FROM = 6
NEEDED = f"Components for {' / '.join(f'{100 * float(one):.0f}' for one in SHARES)}{text.SPACE}% of"
WORDS = (
    "“Variance kept” is a share of the sum of eigenvalues. The share of singular values (square roots of the "
    "eigenvalues) is the other common measure; it is never larger and usually asks for far more components."
)


def linear_layers(report: Report) -> list[Block]:
    """Show spectrum, rank and kept share of each compressed linear layer."""
    layers = [layer for layer in report.get("layers", ()) if layer["kind"] == "linear"]
    grids = _grids(layers, "linear layers")
    if not _ranked(layers):
        return grids
    plots = [
        Plot(
            partial(spectra.linear, layer, f"spectrum-{index}"),
            f"Spectrum of {layer['name']}",
            "Eigenvalues of the covariance of the layer's outputs; below, what the first of them keep.",
        )
        for index, layer in enumerate(_plotted(layers))
    ]
    return [Paragraph(WORDS), Beside(plots), *grids]


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
    """Choose those with a spectrum; of several methods those of the first."""
    known = [layer for layer in layers if layer.get("eigenvalues")]
    return [layer for layer in known if layer["method"] == known[0]["method"]]


def _ranked(layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if "rank" in layer]


def _grids(layers: Sequence[Layer], what: str) -> list[Block]:
    """List those that have a rank, and those of other methods, each with the columns of its method."""
    ranked, others = _ranked(layers), [layer for layer in layers if "rank" not in layer]
    found: list[Block] = [_ranks(ranked, f"Compressed {what}")] if ranked else []
    return [*found, *([_details(others, f"{'Other' if ranked else 'Compressed'} {what}")] if others else [])]


def _details(layers: Sequence[Layer], caption: str) -> Grid:
    """List layers of methods without ranks, with what each method says."""
    titles = list(dict.fromkeys(title for layer in layers for title in layer.get("details", {})))
    return grid(
        caption,
        [*texts("Layer", "Method"), *numbers("Width", *titles)],
        [
            [
                *_begin(layer),
                str(layer["width"]),
                *(layer.get("details", {}).get(title, text.NONE) for title in titles),
            ]
            for layer in layers
        ],
    )


def _ranks(layers: Sequence[Layer], caption: str) -> Grid:
    columns = ("Rank", "Width", "Variance kept", f"{NEEDED} variance", f"{NEEDED} singular values")
    return grid(
        caption,
        [*texts("Layer", "Method", "Activation"), *numbers(*columns, "Rank deficiency")],
        [
            [
                *_begin(layer),
                layer.get("activation") or text.NONE,
                str(layer["rank"]),
                str(layer["width"]),
                text.share(layer["kept_energy"]),
                _needed(layer.get("components", {})),
                _needed(layer.get("components_singular", {})),
                str(layer.get("rank_deficiency", text.NONE)),
            ]
            for layer in layers
        ],
    )


def _begin(layer: Layer) -> list[Inline]:
    return [code(layer["name"]), marked(layer["method"])]


def _needed(components: Mapping[str, int]) -> str:
    return " / ".join(str(components.get(share, text.NONE)) for share in SHARES)
