"""What reports are made of, as plain values; ``html``, ``markdown`` and ``terminal`` lay it out.

Text in it is text: each renderer escapes all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeAlias

from markupsafe import Markup

from afm_dist.report.text import NONE


@dataclass(frozen=True, kw_only=True)
class Span:
    """Text that stands out.

    Attributes:
        text: What is read.
        code: A name, a path or a number as it stands in a file.
        strong: In bold.
        colour: Of the mark before it: that of its method in every plot.
        badge: A word behind it.
        report: Folder of the report that it leads to.
    """

    text: str
    code: bool = False
    strong: bool = False
    colour: str = ""
    badge: str = ""
    report: str = ""


def code(text: object) -> Span:
    """Make a name, a path or a number as it stands in a file."""
    return Span(text=str(text), code=True)


Inline: TypeAlias = str | Span | Sequence[str | Span]


@dataclass(frozen=True)
class GridColumn:
    """A column of a table.

    Attributes:
        title: Its heading.
        text: Whether it holds text, aligned left, or numbers, aligned right.
        short: Heading in a terminal; empty: a terminal has no room for the column.
        breaks: Whether its cells may be broken in a terminal.
        optional: Whether it is left out where no row has anything in it.
    """

    title: str
    text: bool = False
    short: str = ""
    breaks: bool = False
    optional: bool = False


def texts(*titles: str) -> list[GridColumn]:
    """Make columns of text."""
    return [GridColumn(title, text=True) for title in titles]


def numbers(*titles: str) -> list[GridColumn]:
    """Make columns of numbers."""
    return [GridColumn(title) for title in titles]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a table.

    Attributes:
        cells: As many as there are columns; the first is the row's heading.
        strong: Whether it stands out: it ships, it was chosen, it is the sum.
        note: A remark on the row.
        group: Heading of the neighbouring rows that have it, too.
    """

    cells: Sequence[Inline]
    strong: bool = False
    note: str = ""
    group: str = ""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        caption: What it shows.
        columns: From left to right.
        lines: From top to bottom; those of a group are neighbours.
    """

    caption: str
    columns: Sequence[GridColumn]
    lines: Sequence[Line]

    @property
    def groups(self) -> Iterator[tuple[str, list[Line]]]:
        """Yield the headings with their rows."""
        for heading, lines in groupby(self.lines, key=lambda line: line.group):
            yield heading, list(lines)


def grid(caption: str, columns: Sequence[GridColumn], rows: Sequence[Sequence[Inline]]) -> Grid:
    """Make a table whose rows are all alike."""
    return Grid(caption, columns, [Line(cells=cells) for cells in rows])


def pruned(table: Grid) -> Grid:
    """Leave out the optional columns in which no row has anything."""
    kept = [
        index
        for index, column in enumerate(table.columns)
        if not column.optional or any(line.cells[index] not in ("", NONE) for line in table.lines)
    ]
    lines = [replace(line, cells=[line.cells[index] for index in kept]) for line in table.lines]
    return Grid(table.caption, [table.columns[index] for index in kept], lines)


@dataclass(frozen=True)
class Paragraph:
    """Some sentences; small: how to read what stands above."""

    content: Inline
    small: bool = False


@dataclass(frozen=True)
class Emphasis:
    """The paragraph that a page wants to be read."""

    content: Inline


@dataclass(frozen=True)
class Items:
    """Remarks, one below the other."""

    entries: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and what they stand for."""

    pairs: Sequence[tuple[str, Inline]]


@dataclass(frozen=True)
class KeyFigures:
    """Name, value and origin of the few numbers that a page begins with; the sentence above has them, too."""

    figures: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Plot:
    """A plot with its title above and its explanation below; drawn only where plots are shown."""

    draw: Callable[[], Markup]
    title: str
    caption: str


@dataclass(frozen=True)
class Code:
    """A text to copy as it stands, in a language."""

    text: str
    language: str = "sh"


@dataclass(frozen=True)
class Part:
    """Blocks under a small heading, or without one."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Beside:
    """Blocks side by side where there is room, below each other where there is not."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Folded:
    """Detail that is folded away until it is wanted."""

    summary: str
    blocks: Sequence[Block]


Block: TypeAlias = (
    Grid | Paragraph | Emphasis | Items | Facts | KeyFigures | Plot | Code | Part | Beside | Folded
)


@dataclass(frozen=True)
class Section:
    """Blocks under a heading.

    Attributes:
        anchor: Names it in addresses.
        heading: Above it.
        blocks: None: it is left out.
        brief: Whether it is worth its place in a pull request; others are on the page only.
    """

    anchor: str
    heading: str
    blocks: Sequence[Block]
    brief: bool = True


@dataclass(frozen=True, kw_only=True)
class Document:
    """A report.

    Attributes:
        title: Of the window, too.
        origin: What kind of report it is, and of when.
        lead: The result in one sentence.
        opening: What stands before the sections.
        sections: Those with blocks are shown.
    """

    title: str
    origin: str
    lead: str
    opening: Sequence[Block] = ()
    sections: Sequence[Section]
