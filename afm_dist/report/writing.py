"""The three files of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afm_dist import storage
from afm_dist.report import html
from afm_dist.report.markdown import to_markdown
from afm_dist.report.view import Document


def write(content: Mapping[str, Any], document: Document, output: str) -> str:
    """Write ``report.json``, ``report.md`` and ``report.html``; the same content gives the same bytes.

    Args:
        content: Of ``report.json``.
        document: What it looks like.
        output: Folder to write to, a local path or a URI.

    Returns:
        The location of ``report.html``.
    """
    rendered = {"report.md": to_markdown(document), "report.html": html.to_html(document)}
    storage.write_json(storage.join(output, "report.json"), dict(content))
    for name, text in rendered.items():
        storage.write_bytes(storage.join(output, name), text.encode())
    return storage.join(output, "report.html")
