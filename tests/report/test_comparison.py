"""Runs side by side: what is compared with what, and what is not compared."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from afm_dist.errors import DataError
from afm_dist.report.comparison import Comparison, compare
from afm_dist.report.comparison_page import document, sentence
from afm_dist.report.html import to_html
from afm_dist.report.markdown import to_markdown
from afm_dist.report.plots.comparison import to_control
from tests.report.example_runs import example_run, example_runs
from tests.report.parsed_page import Page


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(example_runs())


def page(comparison: Comparison) -> str:
    return to_html(document(comparison))


def markdown(comparison: Comparison) -> str:
    return to_markdown(document(comparison))


def row(comparison: Comparison, run: str, name: str) -> dict:
    (found,) = [
        each
        for each in comparison["rows"]
        if (each["run"], each["name"]) == (run, name) and each["stage"] != "before-finetune"
    ]
    return found


def test_a_model_is_compared_with_the_control_of_its_own_run(comparison: Comparison) -> None:
    found = row(comparison, "first", "afm-emb")

    assert found["ships"]
    assert found["vs_control"] == {"mean": pytest.approx(0.8027 - 0.8034)}
    assert found["vs_baseline"] == {"mean": pytest.approx(0.8027 - 0.8016)}
    assert found["smaller"] == pytest.approx(574.46 / 101.42, rel=1e-4)
    assert "vs_control" not in row(comparison, "first", "control")


def test_several_seeds_are_their_mean_and_deviation(comparison: Comparison) -> None:
    found = row(comparison, "over-three-seeds", "afm-emb")

    # 0.8027 and 0.001 s - 0.0002 s² more for the seeds s = 0, 1, 2; the control has no second term.
    assert found["auc"] == pytest.approx(0.8027 + (0 + 0.0008 + 0.0012) / 3)
    assert found["auc_deviation"] == pytest.approx(0.000611, rel=1e-3)
    differences = [-0.0007, -0.0009, -0.0015]
    assert found["vs_control"]["mean"] == pytest.approx(sum(differences) / 3)
    assert found["vs_control"]["deviation"] == pytest.approx(0.000416, rel=1e-2)
    assert found["vs_control"]["noise"] is True  # t = 4.3 with 2 degrees of freedom: p = 0.05
    assert "auc_deviation" not in row(comparison, "first", "afm-emb")


def test_only_options_that_differ_are_listed(comparison: Comparison) -> None:
    assert comparison["options"] == {"model": ["deepfm", "a-name-of-a-model-that-is-rather-long", "deepfm"]}


def test_runs_on_other_data_are_refused_with_the_difference() -> None:
    first, other = example_run("runs/a"), example_run("runs/b")
    other.first["data"].update(fingerprint="f" * 64, ids=17)
    other.first["data"]["splits"]["train"]["rows"] = 99

    with pytest.raises(DataError, match=r"runs/b: measured on other data than runs/a") as caught:
        compare([first, other])

    message = str(caught.value)
    assert "fingerprint ffffffffffff, not 0123456789ab" in message
    assert "ids 17, not 33778805" in message
    assert "train rows 99, not 41256000" in message
    assert "--allow-different-data" in message


def test_runs_on_other_data_have_sections_of_their_own() -> None:
    runs = [example_run(f"runs/{name}") for name in ("a", "b", "c")]
    runs[1].first["data"]["fingerprint"] = "f" * 64

    comparison = compare(runs, allow_different_data=True)

    assert [run["data"] for run in comparison["runs"]] == [0, 1, 0]
    parsed = Page.of(page(comparison))
    sections = [attributes["id"] for tag, attributes in parsed.tags if tag == "section"]
    assert sections[:2] == ["results-0", "results-1"]
    assert "highest AUC" not in sentence(comparison)
    second = markdown(comparison).partition("## Results on dataset 2 (ffffffffffff)")[2].partition("\n## ")[0]
    assert "| *b: " in second and "| *a: " not in second


@pytest.mark.parametrize(
    ("sizes_and_scores", "expected"),
    [
        # Bytes differ by names only, and are shown alike.
        (
            [(406_000_000, 0.8027), (406_000_100, 0.8037)],
            "The models that ship have one size. Highest AUC: b, 406 MB, AUC 0.8037",
        ),
        (
            [(406_000_000, 0.80271), (406_000_100, 0.80272)],
            "The models that ship have one size and one AUC: 406 MB, AUC 0.8027.",
        ),
        (
            [(2_298_000_000, 0.8037), (406_000_000, 0.8027)],
            "Smallest: b, 406 MB, AUC 0.8027. Highest AUC: a, 2,298 MB, AUC 0.8037.",
        ),
        ([(406_000_000, 0.8037), (2_298_000_000, 0.8027)], "a ships the smallest model and the one with"),
        # The same AUC, as shown, at fewer bytes.
        (
            [(406_000_000, 0.80271), (2_298_000_000, 0.80272)],
            "a ships the smallest model and the highest AUC, as",
        ),
        (
            [(406_000_000, 0.8027), (406_000_100, 0.8037), (500_000_000, 0.8)],
            "b ships one of the smallest models and the one with the highest AUC: 406 MB, AUC 0.8037",
        ),
        (
            [(2_000_000_000, 0.80001), (406_000_000, 0.8)],
            "b ships the smallest model and the highest AUC, as others do: 406 MB, AUC 0.8000",
        ),
    ],
)
def test_the_headline_calls_equal_what_is_shown_alike(
    sizes_and_scores: list[tuple[int, float]], expected: str
) -> None:
    content = compare([example_run(f"runs/{name}") for name, _ in zip("abc", sizes_and_scores, strict=False)])
    shipped = [each for each in content["rows"] if each["ships"]]
    for each, (size, auc) in zip(shipped, sizes_and_scores, strict=True):
        each.pop("vs_control")
        each.update(bytes=size, auc=auc)

    assert sentence(content).startswith(expected)


def test_seeds_with_a_log_each_are_refused() -> None:
    demo = example_run("runs/demo", seeds=(0, 1))
    demo.reports[1]["data"]["fingerprint"] = "f" * 64

    with pytest.raises(DataError, match="each seed has a dataset of its own"):
        compare([demo, example_run("runs/other")], allow_different_data=True)


def test_names_are_the_ends_that_tell_runs_apart() -> None:
    comparison = compare([example_run("a/run"), example_run("b/run")])

    assert [run["name"] for run in comparison["runs"]] == ["a/run", "b/run"]
    with pytest.raises(DataError, match="given twice"):
        compare([example_run("a/run"), example_run("a/run/")])


def test_the_page_is_self_contained_and_shows_every_run(comparison: Comparison) -> None:
    html = page(comparison)
    parsed = Page.of(html)

    assert all(address.startswith("#") for address in parsed.addresses)
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "link", "img", "iframe")]
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(parsed.ids)
    labels = [attributes["aria-label"] for tag, attributes in parsed.tags if tag == "svg"]
    assert len(labels) == 2
    for run in ("first", "second", "over-three-seeds"):
        assert all(run in label for label in labels)
    assert html.count('<span class="badge">ships</span>') == 3
    assert page(comparison) == html


@pytest.mark.parametrize("difference", [0.0, -0.00001, -0.0004, -0.0006])
def test_ticks_are_told_apart_by_their_labels(difference: float) -> None:
    rows = [each for each in compare(example_runs())["rows"] if each["name"] == "afm-emb"]
    for each in rows:
        each["vs_control"] = {"mean": difference}

    drawn = to_control(rows, ["first", "second", "over-three-seeds"], "figure")

    ticks = re.findall(r">([+−]?\d\.\d{4})<", drawn)
    assert len(ticks) >= 2
    assert len(ticks) == len(set(ticks))
    steps = {round(second - first, 4) for first, second in pairwise(map(number, ticks))}
    assert len(steps) == 1


def number(label: str) -> float:
    return float(label.replace("−", "-"))


def test_the_best_possible_is_named_only_where_it_is_drawn() -> None:
    near, far = example_runs()[:2], example_runs()[:2]
    for run in far:
        run.first["data"]["bayes_auc"] = 0.95

    assert "Dotted" in page(compare(near))
    assert "Dotted" not in page(compare(far))


def test_hostile_names_are_text() -> None:
    hostile = "<script>alert('x')</script>|`"
    run = example_run(f"runs/{hostile.replace('/', '')}", model=hostile)
    run.first["title"] = run.first["command"] = hostile
    run.first["data"]["name"] = hostile

    comparison = compare([run, example_run("runs/other")])

    html = page(comparison)
    assert "<script" not in html
    assert hostile in "".join(Page.of(html).words)
    assert "<script" not in markdown(comparison).split("```")[0]


def test_markdown_has_a_row_a_run_and_model(comparison: Comparison) -> None:
    lines = [line for line in markdown(comparison).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    headings = [row[0] for row in cells if row[0].startswith("*") and not any(row[1:])]
    assert [heading.partition(":")[0] for heading in headings[:3]] == [
        "*first",
        "*second",
        "*over-three-seeds",
    ]
    shipped = [row for row in cells if row[0] == "**afm-emb (ships)**"]
    assert shipped[0] == [
        "**afm-emb (ships)**", "after", "0.8027", "+0.0011", "−0.0007", "0.4484", "406", "5.66×",
        "101.42\N{NO-BREAK SPACE}M", "248,980", "2.11×",
    ]  # fmt: skip
    assert shipped[2][2] == "0.8034 ± 0.0006"
    assert shipped[2][4] == "≈ −0.0010 ± 0.0004"
