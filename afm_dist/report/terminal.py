"""What the tables for the terminal have in common."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


def terminal_table(
    title: str, caption: str, *, names: Sequence[str], words: Sequence[str] = (), figures: Sequence[str]
) -> Table:
    """A table without rows, that fits 100 columns and can be read at 80.

    Args:
        title: Above it.
        caption: Below it.
        names: Headings of columns whose cells are broken where there is no room.
        words: Of columns whose cells never are.
        figures: The same, to the right.
    """
    table = Table(
        title=Text(title),
        title_justify="left",
        caption=Text(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in names:
        table.add_column(name, overflow="fold", min_width=8)
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def add_row(table: Table, cells: Sequence[str], *, ships: bool = False) -> None:
    """Add a row; what ships is bold."""
    table.add_row(*(Text(cell) for cell in cells), style="bold" if ships else "")
