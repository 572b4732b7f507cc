from __future__ import annotations

import csv
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.errors import DataError
from data_prep.sources import files, text_log
from data_prep.sources.avazu import HEADER, NAMES, AvazuSource
from tests.data_prep.raw_logs import avazu_text, read_avazu_line
from tests.data_prep.reading import read

GOOD_LINES = st.sampled_from(avazu_text(20).splitlines()[1:])
IN_A_FIELD = st.characters(codec="utf-8", exclude_characters=",\n\r\0")


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A good line, most often with something put into one field."""
    fields = draw(GOOD_LINES).split(",")
    change = draw(st.sampled_from(["none", "label", "token", "fewer", "more", "NUL"]))
    if change == "label":
        fields[1] = draw(st.sampled_from(["0", "1", "2", "", "yes"]))
    elif change == "token":
        fields[draw(st.integers(0, 23).filter(lambda n: n != 1))] = draw(st.text(IN_A_FIELD, max_size=10))
    elif change == "fewer":
        fields = fields[: draw(st.integers(0, 23))]
    elif change == "more":
        fields.append("x")
    elif change == "NUL":
        fields[draw(st.integers(0, 23))] = "a\0"
    return ",".join(fields)


@settings(max_examples=30, deadline=None)
@given(
    written=st.lists(lines(), min_size=1, max_size=8),
    newline=st.sampled_from(["\n", "\r\n"]),
    final_newline=st.booleans(),
    block_bytes=st.integers(400, 2_000),
    chunk_bytes=st.sampled_from([400, 1 << 20]),
    part_bytes=st.sampled_from([1, 1 << 20]),
)
def test_any_mix_of_good_and_bad_lines_reads_as_plain_python_reads_it_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[str],
    newline: str,
    final_newline: bool,
    block_bytes: int,
    chunk_bytes: int,
    part_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("log") / "train.csv"
    at_end = newline if final_newline or not written[-1] else ""
    path.write_bytes((newline.join([HEADER, *written]) + at_end).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(text_log, "PART_BYTES", part_bytes)
        got = read(AvazuSource([str(path)], block_bytes=block_bytes))

    wanted = {i: row for i, line in enumerate(written) if "\0" not in line and (row := read_avazu_line(line))}
    assert got.numbers == list(wanted)
    assert got.rows == list(wanted.values())
    assert [bad.line - 2 for bad in got.rejected] == [i for i in range(len(written)) if i not in wanted]


def test_a_log_reads_as_polars_and_the_csv_module_read_it(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(avazu_text(2_000))

    source = AvazuSource([str(path)], block_bytes=30_000)
    got = read(source)

    with path.open(newline="") as file:
        rows = [
            [float(row["click"]), *(row[f.name] or None for f in source.fields)]
            for row in csv.DictReader(file)
        ]
    assert len(source.blocks()) > 5
    assert got.rows == rows
    frame = pl.read_csv(path, infer_schema=False).drop("id").with_columns(pl.col("click").cast(pl.Float64))
    assert got.rows == [list(row) for row in frame.iter_rows()]
    assert [field.name for field in source.fields] == [n for n in NAMES if n not in ("id", "click")]
    assert {field.kind for field in source.fields} == {"categorical"}


def test_tokens_ascend_as_their_texts_do(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(avazu_text(300))
    source = AvazuSource([str(path)])
    (block,) = source.blocks()

    for rows in source.read(block, 0):
        for column in rows.columns.values():
            text = source.token_text(column.sorted().values).to_list()
            assert text == sorted(text, key=str.encode)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("click", "2", "label '2' is not 0 or 1"),
        ("site_id", "123456789", "site_id '123456789' is not UTF-8 text of at most 8 characters"),
        ("C21", "79,", "25 fields instead of 24"),
        ("C14", "7\0", "a NUL byte at character"),
    ],
)
def test_the_reason_names_the_field_and_the_value(
    tmp_path: Path, field: str, value: str, reason: str
) -> None:
    header, good, bad = avazu_text(2).splitlines()
    fields = bad.split(",")
    fields[NAMES.index(field)] = value
    path = tmp_path / "train.csv"
    path.write_text("\n".join([header, good, ",".join(fields), good]))

    got = read(AvazuSource([str(path)]))

    assert got.numbers == [0, 2]
    ((line, shown),) = got.reasons
    assert line == 3
    assert shown.startswith(reason)


def test_another_header_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text(avazu_text(3).replace("click,", "", 1))

    with pytest.raises(
        DataError, match=r"test\.csv:1: the first line is not Avazu's header .*--source tabular"
    ):
        AvazuSource([str(path)])
