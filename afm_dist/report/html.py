"""Documents as pages: each one file, without scripts and without a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from afm_dist.report.view import Block, Document


def to_html(document: Document) -> str:
    """Render a whole page; the same document gives the same text."""
    return _environment().get_template("page.html").render(document=document)


def blocks_to_html(blocks: Sequence[Block]) -> str:
    """Render a part of a page."""
    return str(_environment().get_template("blocks.html").module.all(blocks))  # type: ignore[attr-defined]


@cache
def _environment() -> Environment:
    """Set up the templates. All values are escaped but plots, which ``plots.canvas`` marks as markup."""
    made = Environment(
        loader=PackageLoader("afm_dist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["kind"] = lambda block: type(block).__name__
    return made
