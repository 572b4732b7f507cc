"""The section of a sweep."""

from __future__ import annotations

import re

from afm_dist.report.schema import Report
from afm_dist.report.sweep_sections import sweep
from tests.report.example import example_report
from tests.report.parsed_page import Page


def test_a_run_without_a_sweep_has_no_such_section() -> None:
    report = example_report()
    del report["sweep"]
    assert sweep(report) == ""


def cells(report: Report, method: str) -> dict[tuple[str, str], str]:
    """Of a method's table, by the headings of its row and column."""
    table = next(
        part for part in sweep(report).split("<table")[1:] if part.startswith(f' aria-label="{method}: test')
    )
    head = re.findall(r'<th scope="col">(.*?)</th>', table)
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', table)
    return {
        (rank, dim): value
        for rank, line in rows
        for dim, value in zip(head[1:], re.findall(r"<td>(.*?)</td>", line), strict=True)
    }


def test_every_model_stands_where_its_ranks_say() -> None:
    report = example_report()
    for method, title in (("afm", "AFM"), ("svd", "SVD of the weights")):
        shown = cells(report, title)
        for point in report["sweep"]:
            if point["method"] == method:
                rank, dim = point["ranks"].get("mlp.2"), point["ranks"].get("embedding")
                place = (str(rank or "full"), f"dim {dim}" if dim else "full")
                assert shown.pop(place) == f"{point['auc']:.4f}"
        assert list(shown) == [("full", "full")]


def test_the_page_says_how_many_models_the_figure_leaves_out() -> None:
    report = example_report()
    report["sweep"] = report["sweep"][:3]
    assert "below the axis" not in sweep(report)
    lowest = min([point["auc"] for point in report["sweep"]] + [row["auc"] for row in report["rows"]])
    hidden, within = dict(report["sweep"][1]), dict(report["sweep"][1])
    hidden.update(name="hidden", front=False, auc=0.5)
    within.update(name="within", front=False, auc=lowest - 1e-5)
    report["sweep"] += [hidden, within]
    assert "1 of 5 models lie below the axis" in sweep(report)


def test_the_section_is_well_formed_with_a_single_model() -> None:
    report = example_report()
    report["sweep"] = report["sweep"][:1]
    Page.of(sweep(report))
