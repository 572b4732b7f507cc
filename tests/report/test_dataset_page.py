"""The page that describes a dataset."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from afm_dist.dataset.description import Token
from afm_dist.report.dataset_page import page
from tests.report.example_description import categorical_field, example_description
from tests.report.parsed_page import Page

HOSTILE = "<script>alert('x')</script>&$\\frac|`*[b]\n\"\x1b]0;\u202e"


@pytest.fixture(scope="module")
def html() -> str:
    return page(example_description())


def rows_of(html: str) -> list[list[str]]:
    """The text of every cell of every table."""
    rows = re.findall(r"<tr.*?</tr>", html, flags=re.DOTALL)
    cells = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows)
    return [["".join(Page.of(f"<p>{cell}</p>").words).replace("\xa0", " ") for cell in row] for row in cells]


def test_the_page_is_self_contained(html: str) -> None:
    parsed = Page.of(html)

    assert all(address.startswith("#") for address in parsed.addresses)
    assert not re.search(r"url\((?!#)|@import|https?://", html.replace("http://www.w3.org/", ""))
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "link", "img", "iframe")]


def test_ids_are_unique_and_every_reference_has_its_target(html: str) -> None:
    parsed = Page.of(html)

    assert len(parsed.ids) == len(set(parsed.ids))
    referenced = {address.removeprefix("#") for address in parsed.addresses}
    assert referenced | set(re.findall(r"url\(#([^)]+)\)", html)) <= set(parsed.ids)


def test_figures_follow_the_theme_and_can_be_read_aloud(html: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)

    assert len(figures) == 2
    assert all("C26" in figure.partition(">")[0] and "var(--blue)" in figure for figure in figures)
    assert not re.findall(r"(?:fill|stroke): #(?!000000)[0-9a-f]{6}", "".join(figures))


def test_every_field_stands_in_a_table_with_its_figures(html: str) -> None:
    rows = {row[0]: row[1:] for row in rows_of(html)}

    assert {f"C{i}" for i in range(1, 27)} | {f"I{i}" for i in range(1, 14)} <= set(rows)
    assert rows["C4"] == [
        "100,004", "90,000", "92.0", "44.1", "0.2", "0.2",
        "04000000 20.0 %, 04000001 10.0 %, 04000002 6.7 %, 04000003 5.0 %, 04000004 4.0 %",
    ]  # fmt: skip
    assert rows["C6"][1:3] == ["–", "88.0"]
    assert rows["I10"] == ["3.2", "1.235", "1.5", "log"]
    assert rows["test"] == ["4,584,000", "–", "46", "700"]
    assert rows["20"] == ["1,500,000", "50.0", "98.0", "96.0", "C3"]
    assert rows["day_23.gz"] == ["16,000,000,023", f"{23:064x}"]


def test_a_field_made_of_another_column_says_so(html: str) -> None:
    assert ["made by weekday(%y%m%d%H) of hour"] in rows_of(html)


def test_hostile_names_and_tokens_are_text() -> None:
    example = example_description()
    hostile = replace(
        categorical_field(1),
        name=HOSTILE,
        column=HOSTILE + "x",
        transform=HOSTILE,
        top=(Token(token=HOSTILE, share=0.5), Token(token=HOSTILE * 10_000, share=0.1)),
        unknown_share={HOSTILE: 0.1},
    )
    example = replace(
        example,
        name=HOSTILE,
        label=HOSTILE,
        preset=HOSTILE,
        source=HOSTILE,
        inputs=(replace(example.inputs[0], name=HOSTILE, sha256=HOSTILE),),
        splits=(replace(example.splits[0], name=HOSTILE),),
        categorical=(hostile,),
        numeric=(replace(example.numeric[0], name=HOSTILE, transform=HOSTILE),),
        thresholds=(replace(example.thresholds[0], least_covered=HOSTILE),),
    )

    html = page(example)

    assert "<script" not in html
    assert len(html) < 200_000
    parsed = Page.of(html)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert HOSTILE in "".join(parsed.words)


def test_a_dataset_of_which_little_is_known_has_a_page() -> None:
    example = example_description()
    little = replace(
        example,
        threshold=None,
        source=None,
        inputs=(),
        rows_read=None,
        rows_rejected=None,
        categorical=(replace(categorical_field(1), missing_share=None, unknown_share={}, top=()),),
        thresholds=(),
        best=None,
    )
    sections = ["splits", "categorical", "numeric"]

    for categorical, numeric in ((True, True), (False, True), (True, False)):
        described = replace(
            little,
            categorical=little.categorical if categorical else (),
            numeric=little.numeric if numeric else (),
        )
        wanted = [
            name for name, present in zip(sections, (True, categorical, numeric), strict=True) if present
        ]
        parsed = Page.of(page(described))
        assert [attributes["id"] for tag, attributes in parsed.tags if tag == "section"] == wanted


def test_of_many_fields_the_largest_are_drawn_and_all_are_listed() -> None:
    many = tuple(
        replace(categorical_field(1), name=f"f{number}", cardinality=number) for number in range(1, 301)
    )

    html = page(replace(example_description(), categorical=many))

    drawn = re.findall(r">(f\d+)<", "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)))
    assert set(drawn) == {f"f{number}" for number in range(241, 301)}
    assert {f"f{number}" for number in range(1, 301)} <= {row[0] for row in rows_of(html)}
    assert "The 60 fields with most ids." in html


def test_the_same_description_gives_the_same_page(html: str) -> None:
    assert page(example_description()) == html
