"""Labels, colours and markers come from the methods; one that says nothing of them is shown all the same."""

from __future__ import annotations

from typing import get_args

import pytest

from afm_dist.compression import registry
from afm_dist.compression.look import Colour, Look
from afm_dist.report.html import to_html
from afm_dist.report.looks import NEUTRAL, in_order, known, look_of, method_of
from afm_dist.report.page import document
from afm_dist.report.plots.canvas import COLOUR
from afm_dist.report.results import results_grid
from afm_dist.report.size_sections import embeddings
from afm_dist.report.view import Grid
from tests.methods import toy
from tests.report.example import example_report


@pytest.mark.parametrize(
    ("row", "method"),
    [
        ("afm", "afm"),
        ("afm-emb", "afm"),
        ("control-mlp", "control"),
        ("toy-emb", "toy"),
        ("afmx-emb", "afmx"),
    ],
)
def test_a_row_begins_with_its_method(row: str, method: str) -> None:
    assert method_of(row) == method


def test_every_colour_of_a_method_is_one_of_the_stylesheet_in_light_dark_and_print() -> None:
    css = to_html(document(example_report())).partition("<style>")[2].partition("</style>")[0]

    assert {look.colour for look in known().values()} <= set(get_args(Colour))
    for name in COLOUR:
        assert css.count(f"--{name}: ") == 3


def test_a_method_that_says_nothing_has_its_name_and_a_colour_of_the_palette() -> None:
    look = look_of("codes-emb")

    assert look == look_of("codes")
    assert look.label == "codes"
    assert look.colour in NEUTRAL
    assert in_order(["codes", "svd", "baseline"]) == ["baseline", "svd", "codes"]


def test_a_method_is_shown_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(label="Integer codes", colour="teal", marker="H")
    facts = toy.ToyFacts()
    monkeypatch.setattr(facts, "looks", {"toy": look, "toy-two": look}, raising=False)
    known()
    monkeypatch.setitem(registry._FACTS, toy.Toy, facts)
    report = example_report()
    for row in report["rows"]:
        row["name"] = row["name"].replace("svd", "toy-two")
    report["sweep"][1]["method"] = "toy"

    page = to_html(document(report))

    assert method_of("toy-two-emb") == "toy-two"
    (group,) = [lines for label, lines in results_grid(report).groups if label == "Integer codes"]
    assert len(group) == 4
    assert '--mark: var(--teal)">toy-two-emb<' in page


def test_the_columns_of_layers_are_those_of_their_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = toy.ToyFacts()
    look = Look(label="Integer codes", colour="teal", marker="H")
    monkeypatch.setattr(facts, "looks", {"toy": look}, raising=False)
    monkeypatch.setattr(
        facts, "columns", lambda layer: {"Bits": layer["bits"], "Kept": 0.5, "Grid": "even"}, raising=False
    )
    known()
    monkeypatch.setitem(registry._FACTS, toy.Toy, facts)
    layer = {"name": "embedding[a]", "kind": "embedding", "method": "toy", "width": 4, "bits": 8}
    report = {"rows": [], "layers": [*example_report()["layers"][2:4], layer]}

    of_rank, of_codes = [block for block in embeddings(report) if isinstance(block, Grid)]

    assert [column.title for column in of_rank.columns[:6]] == [
        "Layer", "Method", "Width", "Activation", "Rank", "Variance kept",
    ]  # fmt: skip
    assert [(column.title, column.text) for column in of_codes.columns[3:]] == [
        ("Bits", False), ("Kept", False), ("Grid", True),
    ]  # fmt: skip
    assert of_codes.lines[0].cells[3:] == ["8", "50\N{NO-BREAK SPACE}%", "even"]
    assert of_codes.caption == "Other embedding tables"


def test_what_has_no_ranks_is_reported_all_the_same() -> None:
    report = example_report()
    report["layers"] = [
        {"name": f"embedding[{kind}]", "kind": "embedding", "method": "codes", "width": 4, **more}
        for kind, more in (("a", {"details": {"Bits": "4"}}), ("b", {}), ("c", {"method": "afm"}))
    ]
    for point in report["sweep"]:
        del point["ranks"]

    page = to_html(document(report))

    assert "Bits" in page and "embedding[b]" in page
    assert "Compressed embedding tables" in page
