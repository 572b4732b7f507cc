"""One table, laid out three times: the same cells, and nothing in them is markup."""

from __future__ import annotations

import io
import re
from importlib.resources import files

import pytest
from rich.console import Console

from afm_dist.report.html import blocks_to_html
from afm_dist.report.markdown import blocks_to_markdown
from afm_dist.report.results import results_grid
from afm_dist.report.terminal import to_terminal, words
from afm_dist.report.view import (
    Beside,
    Block,
    Code,
    Emphasis,
    Facts,
    Folded,
    Grid,
    GridColumn,
    Items,
    KeyFigures,
    Line,
    Paragraph,
    Part,
    Span,
    code,
    grid,
    numbers,
    pruned,
    texts,
)
from tests.report.example import example_report
from tests.report.parsed_page import Page

HOSTILE = "<script>alert('x')</script>&{{ 7 * 7 }}|`*[b]"


def cells_of_page(html: str) -> list[list[str]]:
    rows = re.findall(r'<tr(?: class="strong")?>(.*?)</tr>', html, flags=re.DOTALL)
    return [
        [
            "".join(Page.of(f"<p>{unescape_badge(cell)}</p>").words)
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)
        ]
        for row in rows
    ]


def unescape_badge(cell: str) -> str:
    return re.sub(r'<span class="badge">.*?</span>', "", cell)


def test_page_markdown_and_terminal_show_the_same_results() -> None:
    table = results_grid(example_report())
    expected = [[words(cell) for cell in line.cells] for line in table.lines]

    page = cells_of_page(blocks_to_html([table]))
    lines = blocks_to_markdown([table]).splitlines()
    markdown = [line.strip("|").split("|") for line in lines if re.match(r"\| [*]*\w", line)]
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(to_terminal(table, "title", "caption"))
    printed = [line.split() for line in capture.get().splitlines()]

    assert page == [[column.title for column in table.columns], *expected]
    rows = [[cell.strip() for cell in row] for row in markdown if any(cell.strip() for cell in row[1:])]
    assert [row[1:] for row in rows[1:]] == [row[1:] for row in expected]
    shown = [index for index, column in enumerate(table.columns) if column.short]
    for row in expected:
        assert [row[index] for index in shown] in printed


EVERY_BLOCK: list[Block] = [
    Paragraph(HOSTILE),
    Paragraph([Span(text=HOSTILE, strong=True), code(HOSTILE), Span(text=HOSTILE, report="a")]),
    Emphasis(HOSTILE),
    Items([HOSTILE]),
    Facts([(HOSTILE, HOSTILE)]),
    KeyFigures([(HOSTILE, HOSTILE, HOSTILE)]),
    Code(HOSTILE),
    Part(HOSTILE, [Folded(HOSTILE, [Beside([Items([HOSTILE])])])]),
    Grid(
        HOSTILE,
        texts(HOSTILE, HOSTILE),
        [Line(cells=[Span(text=HOSTILE, badge=HOSTILE), HOSTILE], note=HOSTILE, group=HOSTILE, strong=True)],
    ),
]


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=lambda block: type(block).__name__)
def test_no_text_of_any_block_is_markup(block: Block) -> None:
    html = blocks_to_html([block])

    assert "<script" not in html
    assert HOSTILE in Page.of(html).words
    markdown = blocks_to_markdown([block])
    if not isinstance(block, Code):
        assert "<script" not in markdown
        assert "`" not in markdown.replace("\\`", "")


def test_only_plots_are_markup_of_their_own() -> None:
    for template in files("afm_dist.report").joinpath("templates").iterdir():
        assert not re.search(r"\|\s*safe|autoescape", template.read_text(encoding="utf-8"))


def test_optional_columns_are_left_out_where_nothing_is_in_them() -> None:
    columns = [*numbers("a"), GridColumn("b", optional=True), GridColumn("c", optional=True)]

    found = pruned(grid("caption", columns, [["1", "–", ""], ["2", "–", "3"]]))

    assert [column.title for column in found.columns] == ["a", "c"]
    assert [line.cells for line in found.lines] == [["1", ""], ["2", "3"]]
