"""How reports show what a method made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Of the palette in afm_dist/report/templates/report.css, each with a light and a dark shade.
Colour = Literal["grey", "amber", "blue", "plum", "green", "violet", "teal", "rust"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """How what a method made is shown in reports.

    Attributes:
        label: Heading of its rows.
        colour: Of its marks, in tables and in plots.
        marker: Shape of its points, as matplotlib names it.
    """

    label: str
    colour: Colour
    marker: str
