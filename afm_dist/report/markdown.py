"""Documents as GitHub Markdown, for a pull request: text and tables, no plots."""

from __future__ import annotations

import re
from collections.abc import Sequence

from afm_dist.report.view import (
    Beside,
    Block,
    Code,
    Document,
    Emphasis,
    Facts,
    Folded,
    Grid,
    Inline,
    Items,
    Line,
    Paragraph,
    Part,
    Span,
)

SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]|#~"})


def to_markdown(document: Document) -> str:
    """Render a whole report; the same document gives the same text."""
    parts = [
        f"# {plain(document.title)}",
        f"**{plain(document.lead)}**",
        blocks_to_markdown(document.opening),
    ]
    for section in document.sections:
        body = blocks_to_markdown(section.blocks) if section.brief else ""
        parts += [f"## {plain(section.heading)}", body] if body else []
    return "\n\n".join(part for part in [*parts, plain(document.origin)] if part) + "\n"


def blocks_to_markdown(blocks: Sequence[Block]) -> str:
    """Render some blocks, with an empty line between them."""
    return "\n\n".join(filter(None, map(_block, blocks)))


def plain(value: object) -> str:
    """Escape a value, so that Markdown shows it as it is, on one line."""
    return _escaped(str(value)).strip()


def _escaped(value: str) -> str:
    markup = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[^\S\N{NO-BREAK SPACE}]+", " ", markup.translate(SPECIAL))


def _block(block: Block) -> str:
    """Render a block; plots, and the figures that the first sentence has, are for pages."""
    match block:
        case Grid():
            return _grid(block)
        case Paragraph(content) | Emphasis(content):
            return _inline(content)
        case Items(entries):
            return "\n".join(f"- {plain(entry)}" for entry in entries)
        case Facts(pairs):
            return "\n".join(f"- {plain(name)}: {_inline(value)}" for name, value in pairs)
        case Code(text, language):
            return fenced(text, language)
        case Part(heading, inner):
            above = f"### {plain(heading)}\n\n" if heading else ""
            return above + blocks_to_markdown(inner)
        case Beside(inner):
            return blocks_to_markdown(inner)
        case Folded(summary, inner):
            body = blocks_to_markdown(inner)
            return f"<details><summary>{plain(summary)}</summary>\n\n{body}\n\n</details>"
    return ""


def _inline(content: Inline) -> str:
    if isinstance(content, str):
        return _escaped(content)
    if not isinstance(content, Span):
        return "".join(map(_inline, content))
    text = f"**{plain(content.text)}**" if content.strong else plain(content.text)
    badge = f" ({plain(content.badge)})" if content.badge else ""
    return f"[{text}]({content.report}/report.md)" if content.report else text + badge


def _grid(table: Grid) -> str:
    """Render a table: groups begin with a row of their own, and a note stands beside the row's name."""
    rule = ["---" if column.text else "--:" for column in table.columns]
    rows = [[plain(column.title) for column in table.columns], rule]
    for heading, lines in table.groups:
        rows += [[f"*{plain(heading)}*", *[""] * (len(rule) - 1)]] if heading else []
        rows += map(_cells, lines)
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"{plain(table.caption)}:\n\n{body}" if table.caption else body


def _cells(line: Line) -> list[str]:
    """Render the cells of a row; the name of one that stands out is bold."""
    name, *others = map(_inline, line.cells)
    note = f" ({plain(line.note)})" if line.note else ""
    return [(f"**{name}**" if line.strong else name) + note, *others]


def fenced(command: str, language: str = "sh") -> str:
    """Render a text as a block to copy."""
    fence = "`" * 3
    while fence in command:  # a fence must be longer than any run of backticks inside
        fence += "`"
    return f"{fence}{language}\n{command}\n{fence}"
