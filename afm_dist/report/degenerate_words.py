"""What the report says of layers and tables whose outputs fill fewer dimensions than they have."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from afm_dist.report.schema import Layer
from afm_dist.report.text import count

# Of each kind; the others are counted.
SHOWN = 3


def degenerate_layers(layers: Sequence[Layer]) -> list[str]:
    """Describe outputs that never change, those that others determine, and ranks above the need.

    Fields with fewer tokens than dimensions are the rule, and said only where the rank is more than they
    need.

    Args:
        layers: Those without ``rank_needed`` are left out.
    """
    known = [layer for layer in layers if "rank_needed" in layer]
    linears = [
        layer for layer in known if layer["kind"] == "linear" and layer["rank_needed"] < layer["width"]
    ]
    fields = [layer for layer in known if layer["kind"] == "embedding"]
    constant = [field for field in fields if field["rank_needed"] == 0 < field["rank"]]
    spacious = [field for field in fields if 0 < field["rank_needed"] < field["rank"]]
    return [
        *_capped(linears, _linear, "linear layers with such outputs"),
        *_capped(constant, _constant_field, "fields of the same kind"),
        *_capped(spacious, _spacious_field, "fields with more codes than they need"),
    ]


def _capped(layers: Sequence[Layer], sentence: Callable[[Layer], str], rest: str) -> list[str]:
    # One more than is shown is as short as the count.
    shown = layers if len(layers) <= SHOWN + 1 else layers[:SHOWN]
    sentences = [sentence(layer) for layer in shown]
    if len(layers) > len(shown):
        sentences.append(f"And {count(len(layers) - len(shown))} more {rest}.")
    return sentences


def _linear(layer: Layer) -> str:
    name, width, needed = layer["name"], layer["width"], layer["rank_needed"]
    if needed == 0:
        return f"{name}: its {width} outputs never change; it is a constant, and rank 0 would do."
    few = layer.get("count", width + 1) <= width
    why = f"there were only {layer['count']} rows" if few else "to 1e-8 of the variance"
    return (
        f"{name}: {width - needed} of {width} outputs are constant or combinations of others ({why}); "
        f"a rank of {needed} or more loses nothing{_excess(layer)}."
    )


def _constant_field(layer: Layer) -> str:
    return (
        f"{_field(layer)} has one token in all training rows, or the same embedding for all: its rows carry "
        "no information, rank 0 would do."
    )


def _spacious_field(layer: Layer) -> str:
    return f"{_field(layer)}: a rank of {layer['rank_needed']} loses nothing{_excess(layer)}."


def _excess(layer: Layer) -> str:
    return f", its {layer['rank']} are more than it needs" if layer["rank"] > layer["rank_needed"] else ""


def _field(layer: Layer) -> str:
    """``field C9`` for the table ``embedding[C9]``."""
    found = re.search(r"(?<!\\)\[(.*)\]$", layer["name"], re.DOTALL)
    return f"field {found[1]}" if found else layer["name"]
