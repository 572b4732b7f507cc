"""Sections about what was compressed: linear layers and embedding tables, their spectra and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from afm_dist.report import text
from afm_dist.report.elements import (
    EMPTY,
    Grid,
    Html,
    Line,
    code,
    columns,
    disclosure,
    figure,
    grid,
    join,
    paragraph,
    plain,
)
from afm_dist.report.model_sections import name_cell
from afm_dist.report.plots import spectra, tables
from afm_dist.report.schema import Layer, Report

SHARES = ("0.9", "0.95", "0.99")
FOLDED_FROM = 6


def linear_layers(report: Report) -> Html:
    """Spectrum, rank and kept share of each compressed linear layer."""
    layers = [layer for layer in report.get("layers", ()) if layer["kind"] == "linear"]
    if not layers:
        return EMPTY
    plots = [
        figure(
            spectra.linear(layer, f"spectrum-{index}"),
            f"Spectrum of {layer['name']}",
            plain(
                "Eigenvalues of the covariance of the layer's outputs; below, what the first of them keep."
            ),
        )
        for index, layer in enumerate(_plotted(layers))
    ]
    words = (
        "“Variance kept” is a share of the sum of eigenvalues. The share of singular values (square roots "
        "of the eigenvalues) is the other common measure; it is never larger and usually asks for far more "
        "components."
    )
    ranked = _ranked(layers)
    if not ranked:
        return _other_grids(layers, "Compressed linear layers")
    table = grid(_layer_grid(ranked, "Compressed linear layers"))
    return join(
        [paragraph(plain(words)), columns(*plots), table, _other_grids(layers, "Other linear layers")]
    )


def embeddings(report: Report) -> Html:
    """Spectra of all tables in one strip, bytes of each field, details folded away."""
    layers = [layer for layer in report.get("layers", ()) if layer["kind"] == "embedding"]
    plots = []
    if _plotted(layers):
        plots.append(
            figure(
                spectra.embeddings(_plotted(layers)),
                "Where the variance of each table lies",
                plain("Shares of the variance (sum of eigenvalues) over the rows of the log."),
            )
        )
    if report.get("tables"):
        sizes = report["tables"]
        before = sum(table["bytes_before"] for table in sizes)
        after = sum(table["bytes_after"] for table in sizes)
        caption = f"All fields: {text.shrinkage(before, after)}. Linear axis."
        plots.append(figure(tables.bytes_by_field(sizes), "Bytes of each field", plain(caption)))
    details = EMPTY
    if layers:
        ranked = _ranked(layers)
        details = _other_grids(layers, "Embedding tables by other methods" if ranked else "Embedding tables")
        if ranked:
            details = join([grid(_layer_grid(ranked, "Compressed embedding tables")), details])
        if len(layers) > FOLDED_FROM:
            details = disclosure(f"All {len(layers)} tables in numbers", details)
    return join([columns(*plots), details])


def _plotted(layers: Sequence[Layer]) -> list[Layer]:
    """Those with a spectrum; of several methods only AFM, whose spectrum is that of the outputs."""
    known = [layer for layer in layers if layer.get("eigenvalues")]
    return [layer for layer in known if layer["method"] == "afm"] or known


def _ranked(layers: Sequence[Layer]) -> list[Layer]:
    """Those that have a rank."""
    return [layer for layer in layers if "rank" in layer]


def _other_grids(layers: Sequence[Layer], caption: str) -> Html:
    """Those of methods without ranks, with what each method says; nothing where there are none."""
    others = [layer for layer in layers if "rank" not in layer]
    if not others:
        return EMPTY
    titles = list(dict.fromkeys(title for layer in others for title in layer.get("details", {})))
    lines = [
        Line(
            cells=[
                code(layer["name"]),
                name_cell(layer["method"]),
                plain(layer["width"]),
                *(plain(layer.get("details", {}).get(title, text.NONE)) for title in titles),
            ]
        )
        for layer in others
    ]
    headings = ["Layer", "Method", "Width", *titles]
    return grid(Grid(caption=caption, columns=headings, words=(0, 1), groups=[("", lines)]))


def _layer_grid(layers: Sequence[Layer], caption: str) -> Grid:
    shares = " / ".join(f"{100 * float(share):.0f}" for share in SHARES)
    needed = f"Components for {shares}{text.SPACE}% of"
    headings = ["Layer", "Method", "Activation", "Rank", "Width", "Variance kept"]
    headings += [f"{needed} variance", f"{needed} singular values", "Rank deficiency"]
    return Grid(
        caption=caption,
        columns=headings,
        words=(0, 1, 2),
        groups=[("", [_layer_line(layer) for layer in layers])],
    )


def _layer_line(layer: Layer) -> Line:
    deficiency = layer.get("rank_deficiency")
    return Line(
        cells=[
            code(layer["name"]),
            name_cell(layer["method"]),
            plain(layer.get("activation") or text.NONE),
            plain(layer["rank"]),
            plain(layer["width"]),
            plain(text.share(layer["kept_energy"])),
            _needed(layer.get("components", {})),
            _needed(layer.get("components_singular", {})),
            plain(text.NONE if deficiency is None else deficiency),
        ]
    )


def _needed(components: Mapping[str, int]) -> Html:
    return plain(" / ".join(str(components.get(share, text.NONE)) for share in SHARES))
