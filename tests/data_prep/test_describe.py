"""The tables of a description, in terminals and in files, and the page beside the data."""

from __future__ import annotations

import errno
import io
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from afm_dist import storage
from afm_dist.dataset.description import Description, Token
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from afm_dist.runtime import console
from data_prep import describe
from data_prep.pipeline import prepare
from data_prep.plan import PAGE, check_output
from data_prep.protocol import Protocol
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.dataset.raw_rows import random_rows, write_dataset
from tests.report.example_description import categorical_field, example_description
from tests.report.parsed_page import Page

SCRIPT = "<script>x()</script>"
THRESHOLD = 3
DAYS = [f"2031-05-{day:02d}" for day in range(1, 11)]
VALIDATION_FROM, TEST_FROM = DAYS[7], DAYS[8]

Printed = Callable[[int, bool], io.StringIO]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    """Sends what is printed to a terminal of some width, or to a file, without colours."""

    def to(width: int, terminal: bool) -> io.StringIO:
        file = io.StringIO()
        screen = Console(
            file=file,
            width=width,
            force_terminal=terminal,
            color_system=None,
            highlight=False,
            soft_wrap=True,
        )
        monkeypatch.setattr(console, "out", screen)
        return file

    return to


def tables_of(description: Description, file: io.StringIO) -> list[str]:
    """The printed lines, without the sentences of the summary, which a terminal wraps by itself."""
    describe.show_tables(description)
    lines = file.getvalue().splitlines()
    return [line for line in lines if "rows rejected" not in line and "no model can do better" not in line]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_39_fields_fit_a_terminal(printed: Printed, width: int) -> None:
    lines = tables_of(example_description(), printed(width, True))

    assert max(map(cell_len, lines)) <= width
    assert {f"C{n}" for n in range(1, 27)} | {f"I{n}" for n in range(1, 14)} <= {
        line.partition(" ")[0] for line in lines
    }
    (c26,) = (line for line in lines if line.startswith("C26 "))
    shown = ["1a000000 20.0%", "1a000001 10.0%", "1a000002 6.7%", "1a000003 5.0%", "1a000004 4.0%"]
    fitting = {80: 1, 100: 2, 120: 3}[width]
    assert c26.split() == [
        "C26", "1,000,026", "900,000", "90.0", "44.1", "1.0", "1.1", *", ".join(shown[:fitting]).split()
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_long_names_and_tokens_are_cut_and_figures_are_not(printed: Printed, width: int) -> None:
    example = example_description()
    wide = replace(
        categorical_field(6),
        name="the_name_of_a_field_that_never_ends",
        cardinality=1_234_567_890,
        ids_for_90_percent=1_034_567_890,
        top=(Token(token="東京" * 40, share=0.5), Token(token="x" * 5000, share=0.1)),
    )

    lines = tables_of(replace(example, categorical=(wide, categorical_field(1))), printed(width, True))

    assert max(map(cell_len, lines)) <= width
    (shown,) = (line.split() for line in lines if line.startswith("the_n"))
    assert "…" in shown[0]
    assert shown[1:7] == ["1,234,567,890", "1,034,567,890", "88.0", "44.1", "0.2", "0.2"]


def test_files_hold_a_row_of_the_table_in_a_line_of_120_columns(printed: Printed) -> None:
    lines = tables_of(example_description(), printed(30, False))

    assert 100 < max(map(cell_len, lines)) <= 120
    assert sum(line.startswith("C26 ") for line in lines) == 1
    assert "\x1b" not in "".join(lines)


def test_brackets_and_control_characters_in_names_and_tokens_are_text(printed: Printed) -> None:
    name = "[red]f[/red]\x1b[31m"
    field = replace(
        categorical_field(1),
        name=name,
        column="\x1b[31mc",
        transform="[x]",
        top=(Token(token="[b]\x1b[31m\n", share=0.5),),
    )
    example = example_description()
    example = replace(
        example,
        name=name,
        label="[l]",
        preset="\x1b[31m",
        categorical=(field,),
        numeric=(replace(example.numeric[0], name=name, transform=name),),
        inputs=(replace(example.inputs[0], name=name),),
        thresholds=(replace(example.thresholds[0], least_covered=name),),
    )
    file = printed(200, True)

    describe.show_tables(example)

    text = file.getvalue()
    assert text.count("[red]f[/red]\\x1b[31m") == 7
    assert "'[l]'" in text and "made by [x] of \\x1b[31mc" in text
    assert "[b]\\x1b[31m\\n 50.0%" in text
    assert "\x1b" not in text


def test_fields_made_of_other_columns_are_listed_by_how(printed: Printed) -> None:
    bucketed = tuple(replace(categorical_field(n), transform="log-square-bucket") for n in (1, 2, 3))
    example = replace(example_description(), categorical=(*bucketed, categorical_field(5)))

    lines = [line.split() for line in tables_of(example, printed(100, True))]

    assert ["made", "by", "log-square-bucket", "C1,", "C2,", "C3"] in lines
    assert ["made", "by", "weekday(%y%m%d%H)", "of", "hour", "C5"] in lines


def test_checksums_are_whole_where_they_fit_and_begun_where_not(printed: Printed) -> None:
    narrow, wide = (tables_of(example_description(), printed(width, True)) for width in (80, 120))

    assert f"{3:064x}"[:12] in next(line for line in narrow if line.startswith("day_3.gz")).split()
    assert f"{3:064x}" in next(line for line in wide if line.startswith("day_3.gz")).split()
    assert any(line.startswith("the first of 24 files, 384,000,000,276 bytes") for line in wide)


def test_a_dataset_without_facts_is_shown_without_their_figures(tmp_path: Path, printed: Printed) -> None:
    manifest = write_dataset(tmp_path / "tiny", random_rows(100, seed=1), 2)
    file = printed(100, True)

    describe.show_tables(Description.of(replace(manifest, facts={}, sources=())))

    assert "(threshold –), 1 numeric field; – of – rows rejected" in file.getvalue()
    assert "higher threshold" not in file.getvalue() and "made of" not in file.getvalue()


@pytest.fixture
def clicks(tmp_path: Path) -> tuple[Path, list[list[str]]]:
    """A small table: ad with a hostile token, site often missing, rows cut into splits by day."""
    generator = random.Random(4)
    rows = []
    for _ in range(500):
        ad = generator.choice([SCRIPT, "a", "a", "b", f"rare{generator.randrange(80)}"])
        site = "" if generator.random() < 0.3 else f"s{int(generator.paretovariate(1))}"
        rows.append([str(int(generator.random() < 0.25)), generator.choice(DAYS), ad, site])
    path = tmp_path / "clicks.csv"
    path.write_text("click,day,ad,site\n" + "".join(",".join(row) + "\n" for row in rows))
    return path, rows


@pytest.mark.ray
def test_a_prepared_table_is_described_as_its_rows_are(
    local_ray: None, clicks: tuple[Path, list[list[str]]], tmp_path: Path, printed: Printed
) -> None:
    path, rows = clicks
    output = str(tmp_path / "data")
    prepare(
        TabularSource([str(path)], ColumnOptions(label="click", categorical=("day",))),
        output,
        Protocol(
            threshold=THRESHOLD,
            split_by="column",
            split_column="day",
            validation_from=VALIDATION_FROM,
            test_from=TEST_FROM,
        ),
    )
    file = printed(120, False)

    describe.show(output)

    shown = {line.split()[0]: line for line in file.getvalue().splitlines() if line.strip()}
    page = Page.of(Path(output, PAGE).read_text(encoding="utf-8"))
    splits = {
        "train": [row for row in rows if row[1] < VALIDATION_FROM],
        "validation": [row for row in rows if VALIDATION_FROM <= row[1] < TEST_FROM],
        "test": [row for row in rows if row[1] >= TEST_FROM],
    }
    for name, here in splits.items():
        rate = sum(row[0] == "1" for row in here) / len(here)
        assert shown[name].split()[1:4] == [str(len(here)), f"{100 * rate:.2f}", "%"]
    for name, column in (("day", 1), ("ad", 2), ("site", 3)):
        counts = Counter(row[column] for row in splits["train"])
        known = sorted((t for t in counts if counts[t] >= THRESHOLD), key=lambda t: (-counts[t], t))
        n_train = len(splits["train"])
        top = f"{known[0] or '(missing)'} {in_percent(counts[known[0]], n_train)}%"
        figures = [
            str(len(known) + 1),
            in_percent(sum(counts[token] for token in known), n_train),
            in_percent(sum(row[column] == "" for row in rows), len(rows)),
            *(
                in_percent(sum(row[column] not in known for row in splits[held_out]), len(splits[held_out]))
                for held_out in ("validation", "test")
            ),
        ]
        cells = shown[name].replace("\xa0", "").split()
        assert [cells[1], *cells[3:7]] == figures
        assert f"  {top}" in shown[name]
        assert name in page.words
    assert SCRIPT in shown["ad"] and SCRIPT in page.words
    assert SCRIPT not in Path(output, PAGE).read_text(encoding="utf-8")
    check_output(output)


def in_percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f}" if share in (0, 100) else f"{share:.1f}"


def test_the_page_is_written_beside_the_data_and_the_last_line_says_so(
    tmp_path: Path, printed: Printed
) -> None:
    location = str(write_dataset(tmp_path / "tiny", random_rows(100, seed=1), 2).location)
    before = set(storage.list_names(location))
    file = printed(100, True)

    describe.show(location)

    assert set(storage.list_names(location)) == before | {PAGE}
    assert file.getvalue().splitlines()[-1] == f"as a page: {location}/{PAGE}"
    assert {"ad", "site", "hour", "age"} <= set(Page.of(Path(location, PAGE).read_text("utf-8")).words)


def test_where_the_page_cannot_be_written_the_tables_are_printed_and_a_warning(
    tmp_path: Path,
    printed: Printed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    location = str(write_dataset(tmp_path / "tiny", random_rows(100, seed=1), 2).location)
    file = printed(100, True)

    def refuse(location: str, data: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(storage, "write_bytes", refuse)

    describe.show(location)

    assert "categorical fields" in file.getvalue() and "as a page" not in file.getvalue()
    warning = capsys.readouterr().err.strip()
    assert warning.startswith("warning:") and "\n" not in warning
    assert f"{location}/{PAGE}" in warning and "Read-only file system" in warning


def test_a_damaged_dataset_has_no_page(tmp_path: Path, printed: Printed) -> None:
    manifest: Manifest = write_dataset(tmp_path / "tiny", random_rows(100, seed=1), 2)
    Path(manifest.location, "vocabulary", "ad.parquet").unlink()
    file = printed(100, True)

    with pytest.raises(DataError, match=r"vocabulary/ad\.parquet: .*no such file.*prepare the data again"):
        describe.show(manifest.location)

    assert file.getvalue() == ""
    assert PAGE not in storage.list_names(manifest.location)
