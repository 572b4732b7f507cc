"""Tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from afm_dist.report.view import Grid, Inline, Span


def to_terminal(grid: Grid, title: str, caption: str) -> Table:
    """Render a table that fits 100 columns and can be read at 80: the columns with a short heading.

    Args:
        grid: The table; its rows that stand out are bold, and its groups lie apart.
        title: Above it.
        caption: Below it.
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
    shown = [index for index, column in enumerate(grid.columns) if column.short]
    for column in (grid.columns[index] for index in shown):
        table.add_column(
            column.short,
            justify="left" if column.text else "right",
            overflow="fold" if column.breaks else "ellipsis",
            no_wrap=not column.breaks,
            min_width=8 if column.breaks else None,
        )
    for _, lines in grid.groups:
        for line in lines:
            cells = (Text(words(line.cells[index])) for index in shown)
            table.add_row(*cells, style="bold" if line.strong else "")
        table.add_section()
    return table


def words(content: Inline) -> str:
    """Give the text alone."""
    if isinstance(content, str):
        return content
    return content.text if isinstance(content, Span) else "".join(map(words, content))
