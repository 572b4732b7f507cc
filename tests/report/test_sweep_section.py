"""The section of a sweep."""

from __future__ import annotations

from afm_dist.report.html import blocks_to_html
from afm_dist.report.schema import Report
from afm_dist.report.sweep_sections import sweep
from afm_dist.report.view import Beside, Grid
from tests.report.example import example_report
from tests.report.parsed_page import Page


def test_a_run_without_a_sweep_has_no_such_section() -> None:
    report = example_report()
    del report["sweep"]
    assert sweep(report) == []


def shown_of(report: Report) -> str:
    return blocks_to_html(sweep(report))


def matrices(report: Report) -> dict[str, Grid]:
    """By label of the method."""
    (beside,) = [block for block in sweep(report) if isinstance(block, Beside)]
    return {grid.caption.partition(":")[0]: grid for grid in beside.blocks if isinstance(grid, Grid)}


def cells(grid: Grid) -> dict[tuple[str, str], str]:
    """Of a method's table, by the headings of its row and column."""
    dims = [column.title for column in grid.columns[1:]]
    return {
        (str(line.cells[0]), dim): str(value)
        for line in grid.lines
        for dim, value in zip(dims, line.cells[1:], strict=True)
    }


def test_every_model_stands_where_its_ranks_say() -> None:
    report = example_report()
    for method, title in (("afm", "AFM"), ("svd", "SVD")):
        shown = cells(matrices(report)[title])
        for point in report["sweep"]:
            if point["method"] == method:
                rank, dim = point["ranks"].get("mlp.2"), point["ranks"].get("embedding")
                place = (str(rank or "full"), f"dim {dim}" if dim else "full")
                assert shown.pop(place) == f"{point['auc']:.4f}"
        assert list(shown) == [("full", "full")]


def test_the_page_says_how_many_models_the_figure_leaves_out() -> None:
    report = example_report()
    report["sweep"] = report["sweep"][:3]
    assert "below the axis" not in shown_of(report)
    lowest = min([point["auc"] for point in report["sweep"]] + [row["auc"] for row in report["rows"]])
    hidden, within = dict(report["sweep"][1]), dict(report["sweep"][1])
    hidden.update(name="hidden", front=False, auc=0.5)
    within.update(name="within", front=False, auc=lowest - 1e-5)
    report["sweep"] += [hidden, within]
    assert "1 of 5 models lie below the axis" in shown_of(report)


def test_the_section_is_well_formed_with_a_single_model() -> None:
    report = example_report()
    report["sweep"] = report["sweep"][:1]
    Page.of(shown_of(report))
