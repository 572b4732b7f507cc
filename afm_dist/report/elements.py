"""The building blocks of the page. ``Html`` is text that is already safe; nothing else gets in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NewType

Html = NewType("Html", str)
"""Markup. Plain strings become markup through ``plain``, so the type checker finds what is not escaped."""

EMPTY = Html("")


def plain(value: object) -> Html:
    """Any value as text, escaped."""
    return Html(escape(str(value)))


def join(parts: Iterable[Html], between: str = "\n") -> Html:
    """Pieces of markup one after the other."""
    return Html(between.join(part for part in parts if part))


def code(value: object) -> Html:
    """A name, a path or a number as it stands in a file."""
    return Html(f"<code>{escape(str(value))}</code>")


def paragraph(content: Html, style: str = "") -> Html:
    """A paragraph, of a CSS class where one is given."""
    return Html(f'<p class="{style}">{content}</p>' if style else f"<p>{content}</p>")


def section(anchor: str, heading: str, content: Html) -> Html:
    """A section under a heading."""
    return Html(
        f'<section id="{anchor}" aria-labelledby="{anchor}-heading">\n'
        f'<h2 id="{anchor}-heading">{escape(heading)}</h2>\n{content}\n</section>'
    )


def columns(*content: Html) -> Html:
    """Blocks side by side where there is room, below each other where there is not."""
    body = join(content)
    return Html(f'<div class="columns">\n{body}\n</div>') if body else EMPTY


def figure(svg: Html, title: str, caption: Html = EMPTY) -> Html:
    """A plot with its title above and its explanation below."""
    below = f"<p>{caption}</p>" if caption else ""
    return Html(
        f"<figure>\n<figcaption><strong>{escape(title)}</strong>{below}</figcaption>\n{svg}\n</figure>"
    )


def disclosure(summary: str, content: Html) -> Html:
    """Detail that is folded away until asked for."""
    return Html(f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>")


def definitions(pairs: Sequence[tuple[str, Html]]) -> Html:
    """Names and what they stand for."""
    body = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return Html(f'<dl class="facts">\n{body}\n</dl>') if pairs else EMPTY


def figures(blocks: Sequence[tuple[str, str, str]]) -> Html:
    """What a page says first: name, value and origin of a few numbers, in large type."""
    body = "\n".join(
        f'<div><dt>{plain(name)}</dt><dd class="value">{plain(value)}</dd>'
        f'<dd class="from">{plain(origin)}</dd></div>'
        for name, value, origin in blocks
    )
    return Html(f'<dl class="figures">\n{body}\n</dl>')


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table.

    Attributes:
        cells: As many as there are columns; the first is the row's heading.
        style: CSS class.
        note: A remark shown below the row, across the whole table.
    """

    cells: Sequence[Html]
    style: str = ""
    note: Html = EMPTY


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table.

    Attributes:
        caption: What it shows.
        columns: Headings.
        words: Indices of the columns that hold text; the others hold numbers, aligned right.
        groups: Rows under an optional heading each.
    """

    caption: str
    columns: Sequence[str]
    words: Sequence[int] = (0,)
    groups: Sequence[tuple[str, Sequence[Line]]] = field(default_factory=list)


def grid(table: Grid) -> Html:
    """A table in a box of its own that scrolls sideways when the page is narrow."""

    def style(index: int, extra: str = "") -> str:
        names = " ".join(name for name in ("words" if index in table.words else "", extra) if name)
        return f' class="{names}"' if names else ""

    head = "".join(
        f'<th scope="col"{style(index)}>{escape(name)}</th>' for index, name in enumerate(table.columns)
    )
    bodies = []
    for heading, lines in table.groups:
        rows = []
        if heading:
            rows.append(
                f'<tr class="group"><th scope="rowgroup" colspan="{len(table.columns)}">'
                f"{escape(heading)}</th></tr>"
            )
        for line in lines:
            first, *others = line.cells
            cells = "".join(f"<td{style(index)}>{cell}</td>" for index, cell in enumerate(others, start=1))
            opening = f'<tr class="{line.style}">' if line.style else "<tr>"
            rows.append(f'{opening}<th scope="row"{style(0)}>{first}</th>{cells}</tr>')
            if line.note:
                style_of_note = f"note {line.style}".strip()
                note = f'<td colspan="{len(table.columns)}">{line.note}</td>'
                rows.append(f'<tr class="{style_of_note}">{note}</tr>')
        bodies.append("<tbody>\n" + "\n".join(rows) + "\n</tbody>")
    block = (
        f'<p class="caption">{escape(table.caption)}</p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption)}">\n'
        f'<table aria-label="{escape(table.caption)}">\n<thead><tr>{head}</tr></thead>\n'
        + "\n".join(bodies)
        + "\n</table>\n</div>"
    )
    return Html(f"<div>\n{block}\n</div>")
