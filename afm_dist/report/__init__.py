"""The report of a run: one plain dict in; ``report.json``, ``report.md``, ``report.html`` out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afm_dist.report.results import table
from afm_dist.report.schema import Report
from afm_dist.report.seeds import over_seeds, seeds_table, sentence, write_seeds_report
from afm_dist.report.validate import read_report, validated
from afm_dist.report.writing import write

__all__ = [
    "Report",
    "over_seeds",
    "read_report",
    "seeds_table",
    "sentence",
    "table",
    "validated",
    "write_report",
    "write_seeds_report",
]


def write_report(report: Mapping[str, Any], output: str) -> str:
    """Write ``report.json``, ``report.md`` and ``report.html``; the same dict gives the same bytes.

    Args:
        report: The content of ``report.json``, see ``afm_dist.report.schema.Report``.
        output: Folder to write to, a local path or a URI.

    Returns:
        The location of ``report.html``.

    Raises:
        DataError: a number is NaN, a key is missing, or the figures contradict each other.
    """
    from afm_dist.report.page import document  # matplotlib takes a second to import, and only this needs it

    return write(report, document(validated(report)), output)
