"""The three files and the terminal table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import dropwhile, takewhile

import pytest
from rich.console import Console

from afm_dist.report import table, write_report
from tests.report.example import example_report, reliability
from tests.report.example_description import example_description
from tests.report.parsed_page import Page

HOSTILE = "afm-<script>alert('x')</script>&$\\frac|`*[b]\n\"emb"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("example"), example_report())


def _write(tmp_path, report):
    location = write_report(report, str(tmp_path))
    assert location == str(tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    return Page.of(html), html, (tmp_path / "report.md").read_text(encoding="utf-8")


def test_same_dict_gives_same_bytes(tmp_path):
    for folder in ("first", "second"):
        write_report(example_report(), str(tmp_path / folder))

    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_report_json_is_the_dict(tmp_path):
    write_report(example_report(), str(tmp_path))

    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == example_report()


def test_page_is_self_contained_and_small(example):
    page, html, _ = example

    assert all(address.startswith("#") for address in page.addresses)
    assert "url(http" not in html and "@import" not in html
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe")]
    assert len(html) < 3_000_000


def test_ids_are_unique_and_every_reference_has_its_target(example):
    page, html, _ = example

    assert len(page.ids) == len(set(page.ids))
    referenced = {address.removeprefix("#") for address in page.addresses}
    clipped = set(re.findall(r"url\(#([^)]+)\)", html))
    assert referenced | clipped <= set(page.ids)


def test_colours_follow_the_theme(example):
    _, html, _ = example

    figures = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--blue)" in figures
    assert not re.findall(r"(?:fill|stroke): #(?!000000)[0-9a-f]{6}", figures)


def test_figures_and_tables_can_be_read_aloud(example):
    page, _, _ = example

    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(figures) == 13
    assert all(figure["role"] == "img" and len(figure["aria-label"]) > 20 for figure in figures)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_hostile_names_are_text(tmp_path):
    report = example_report()
    for row in report["rows"]:
        if row["name"] == "afm-emb":
            row.update(name=HOSTILE, note=HOSTILE)
    report["shipped"].update(name=HOSTILE, checkpoint=HOSTILE, reason=HOSTILE)
    for key in ("title", "command", "created"):
        report[key] = HOSTILE
    report["layers"][0]["name"] = report["layers"][5]["name"] = HOSTILE
    report["finetuning"][4].update(name=HOSTILE, kept=HOSTILE, reason=HOSTILE, recipe={HOSTILE: HOSTILE})
    report["relu_modes"][0]["activation"] = report["tables"][0]["field"] = HOSTILE
    report["data"].update(name=HOSTILE, splits={HOSTILE: {"rows": 3}}, fields={HOSTILE: 1})
    report["environment"] = report["config"] = {HOSTILE: HOSTILE}
    report["timings"][0]["stage"] = HOSTILE
    report["sweep"][1].update(name=HOSTILE, ranks={HOSTILE: 2})
    report["notes"] = [HOSTILE]
    report["commands"] = [{"what": HOSTILE, "command": HOSTILE}]
    report["data"]["description"]["categorical"][0].update(name=HOSTILE, column=HOSTILE)

    page, html, markdown = _write(tmp_path, report)

    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in html
    assert HOSTILE in "".join(page.words)
    outside_of_code = markdown.split("```")[0]
    assert "<script" not in outside_of_code
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in _table_after(markdown, "## Results")}
    assert widths == {14}


@pytest.mark.parametrize(
    "absent",
    [
        ["layers", "environment"],
        ["finetuning", "config"],
        ["training", "timings"],
        ["relu_modes", "notes"],
        ["tables", "command"],
        ["data", "created"],
    ],
)
def test_any_optional_section_may_be_absent(tmp_path, absent):
    report = example_report()
    for key in absent:
        del report[key]

    _write(tmp_path, report)


def test_calibration_is_shown_where_it_was_measured(tmp_path):
    report = _least()
    next(row for row in report["rows"] if row["name"] == "baseline")["calibration"] = 1.0123

    _, html, _ = _write(tmp_path, report)

    section = html.partition('<section id="calibration"')[2].partition("</section>")[0]
    assert "1.0123" in section and "<svg" not in section and "afm-mlp" not in section


def test_calibration_is_drawn_of_baseline_control_and_what_ships(example):
    page, _, _ = example

    (label,) = [a["aria-label"] for _, a in page.tags if a.get("aria-label", "").startswith("Observed")]
    assert label.endswith("baseline 1.0123, control 1.0123, afm-emb 1.0123.")


def test_rates_of_no_click_are_drawn(tmp_path):
    report = _least()
    for row in report["rows"]:
        row["reliability"] = reliability()
        row["reliability"][0]["observed"] = row["reliability"][1]["predicted"] = 0
        row["calibration"] = 0.9

    page, _, _ = _write(tmp_path, report)

    assert any(attributes.get("aria-label", "").startswith("Observed") for _, attributes in page.tags)


def test_data_are_described_without_their_tokens(example):
    page, html, markdown = example

    section = html.partition('<section id="data"')[2].partition("</section>")[0]
    assert "C3" in section and "I13" in section and "Unknown in validation" in section
    assert "3 categorical fields in numbers" in section
    assert example_description().categorical[0].top[0].token not in section
    assert "Most frequent" not in page.words
    assert "| train | 41,256,000 | 25.62\N{NO-BREAK SPACE}% |" in markdown


def test_the_commands_of_the_run_are_there_to_copy(example):
    page, _, markdown = example

    for command in (example_report()["command"], example_report()["commands"][0]["command"]):
        assert command in page.words
        assert f"```sh\n{command}\n```" in markdown
    assert "64.0\N{NO-BREAK SPACE}GB" in page.words


def _least():
    """Only what must be there."""
    keys = ("name", "stage", "auc", "log_loss", "parameters", "bytes", "rows_per_second", "throughput_ratio")
    rows = [row for row in example_report()["rows"] if row["name"] in ("baseline", "afm-mlp")]
    return {
        "format_version": 1,
        "title": "t",
        "rows": [{key: row[key] for key in keys} for row in rows],
        "shipped": {"name": "afm-mlp", "stage": "after-finetune"},
    }


def test_the_least_report_has_only_results(tmp_path):
    page, _, markdown = _write(tmp_path, _least())

    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == ["results"]
    assert re.findall(r"^## (.*)", markdown, flags=re.MULTILINE) == ["Results"]


def _table_after(markdown, heading):
    lines = dropwhile(lambda line: not line.startswith("|"), markdown.partition(heading)[2].splitlines())
    return list(takewhile(lambda line: line.startswith("|"), lines))


def _cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_rows_in_order_with_their_ratios(example):
    _, _, markdown = example

    lines = [_cells(line) for line in _table_after(markdown, "## Results")]
    by_name = {(cells[0].strip("*").split(" ")[0], cells[1]): cells for cells in lines[2:]}
    assert list(by_name)[:7] == [
        ("Uncompressed", ""), ("baseline", "none"), ("control-mlp", "after"), ("control", "after"),
        ("AFM", ""), ("afm-mlp", "before"), ("afm-mlp", "after"),
    ]  # fmt: skip
    assert by_name["afm-emb", "after"] == [
        "**afm-emb (ships)** (kept: step 1250)", "after", "0.8027", "+0.0011", "−0.0007", "0.4484", "0.8031",
        "406", "5.66×", "101.42\N{NO-BREAK SPACE}M", "248,980", "2.11×", "2.04–2.19",
    ]  # fmt: skip
    assert by_name["svd-mlp", "before"][3:5] == ["−0.0303", "−0.0303"]


@pytest.mark.parametrize("width", [80, 100])
def test_terminal_table_fits(width):
    console = Console(width=width, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table(example_report()))

    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in capture.get()
    shipped = next(line for line in lines if re.search(r"afm-emb +after", line))
    assert shipped.split() == [
        "afm-emb",
        "after",
        "0.8027",
        "+0.0011",
        "−0.0007",
        "0.4484",
        "406",
        "248,980",
        "2.11×",
    ]


def test_brackets_in_names_are_no_markup():
    report = example_report()
    report["title"] = "[red]title[/red]"
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(table(report))

    assert "[red]title[/red]" in capture.get()


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, afm_dist.report; sys.exit('matplotlib' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_layer_without_variance_is_shown(tmp_path):
    report = example_report()
    report["layers"][0].update(eigenvalues=[0.0] * 400, rank_deficiency=400, kept_energy=1.0)
    report["layers"][3].update(eigenvalues=[0.0] * 16, kept_energy=1.0)

    _write(tmp_path, report)


def test_layers_without_a_spectrum_are_listed(tmp_path):
    report = example_report()
    for layer in report["layers"]:
        del layer["eigenvalues"]

    page, _, _ = _write(tmp_path, report)

    assert "mlp.2" in page.words and "embedding.table[C26]" in page.words


def test_svd_spectra_are_drawn_where_there_are_no_others(tmp_path):
    report = example_report()
    for layer in report["layers"]:
        layer["method"] = "svd"

    page, _, _ = _write(tmp_path, report)

    assert any("Spectrum of mlp.2" in attributes.get("aria-label", "") for _, attributes in page.tags)
