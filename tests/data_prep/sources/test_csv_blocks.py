"""A CSV file read in byte ranges against the same file read as a whole, and against the csv module."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afm_dist.errors import DataError
from data_prep.sources import csv_table, files
from data_prep.sources.csv_lines import ScannedLines
from data_prep.sources.source import Rejected
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.reading import Read, read

COLUMNS = ColumnOptions(label="click", categorical=("ad", "site"), numeric=("price",))
REJECTED = Rejected(line=1, text="x", reason="too long")
HEADER = "click,ad,price,site"
LINES = st.one_of(
    st.builds(
        lambda label, ad, price, site: f"{label},{ad},{price},{site}",
        st.sampled_from("01"),
        st.text("ab é", max_size=3),
        st.sampled_from(["", "1", "-2.5", "NA", "3e2"]),
        st.text("xyz", max_size=2),
    ),
    st.sampled_from(
        ["", ",,,", "1,a", "1,a,2,x,extra", "2,a,1,x", ",a,1,x", "1,a,many,x", "0,\0,1,x", "1,a,inf,x"]
    ),
    st.integers(35, 130).map(lambda size: "1,a,2," + "x" * size),
)


def test_overlong_lines_are_taken_out_while_arrow_reads_ahead() -> None:
    class Line(int):
        """A line in whose comparisons, as in another thread, another overlong line is found."""

        def __lt__(self, other: int) -> bool:
            seen.overlong.setdefault(len(seen.overlong) + 100, REJECTED)
            return int(self) < other

    seen = ScannedLines(line=1, overlong={Line(3): REJECTED, Line(2): REJECTED, Line(50): REJECTED})

    rows = seen.take_overlong(np.array([1, 3]), end=10)

    assert {row: bad.line for row, bad in rows.items()} == {0: 1, 1: 3}
    assert set(seen.overlong) >= {50, 103}


def _read(path: Path, *, block_bytes: int = 1 << 30) -> Read:
    return read(TabularSource([str(path)], COLUMNS, block_bytes=block_bytes))


@settings(max_examples=40, deadline=None)
@given(
    written=st.lists(LINES, min_size=1, max_size=14),
    newline=st.sampled_from(["\n", "\r\n"]),
    final_newline=st.booleans(),
    mark=st.sampled_from([b"", files.BYTE_ORDER_MARK]),
    block_bytes=st.integers(60, 300),
    chunk_bytes=st.integers(5, 300),
)
@example(["1,a,2," + "x" * 50, "1,b,3,y"], "\n", True, b"", 30, 1 << 20)
def test_byte_ranges_give_the_rows_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[str],
    newline: str,
    final_newline: bool,
    mark: bytes,
    block_bytes: int,
    chunk_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("table") / "t.csv"
    written = ["1,a,0.5,x", *written]
    at_end = newline if final_newline else ""
    path.write_bytes(mark + (newline.join([HEADER, *written]) + at_end).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "MAX_LINE_BYTES", 60)
        patch.setattr(csv_table, "BATCH_BYTES", 200)
        whole = _read(path)
        patch.setattr(files, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(csv_table, "BATCH_BYTES", 70)
        in_ranges = _read(path, block_bytes=block_bytes)

    assert in_ranges.rows == whole.rows
    assert in_ranges.numbers == whole.numbers
    assert in_ranges.rejected == whole.rejected
    # What is neither a row nor rejected is empty.
    known = {*whole.numbers, *(bad.line - 2 for bad in whole.rejected)}
    assert [line for number, line in enumerate(written) if number not in known and line] == []
    for number, row in zip(whole.numbers, whole.rows, strict=True):
        label, ad, price, site = written[number].split(",")
        number_or_none = float(price) if price not in ("", "NA") else None
        assert row == [float(label), ad or None, number_or_none, site or None]


def test_many_ranges_have_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "\n" + "1,a,2,x\n" * 100)

    assert _read(path, block_bytes=100).pieces > 7
    assert _read(path).pieces == 1


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("01"), st.text(max_size=4), st.just("1.5"), st.text(',"\n\tx', max_size=4)),
        min_size=1,
        max_size=8,
    )
)
def test_quoted_values_are_read_as_the_csv_module_writes_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    path = tmp_path_factory.mktemp("table") / "t.csv"
    # Both columns hold text: of a column of numbers, integers have one spelling.
    rows = [("0", "x", "1.5", "x"), *rows]
    rows = [tuple(value.replace("\r", "").replace("\0", "") for value in row) for row in rows]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([HEADER.split(","), *rows])
    path.write_text(file.getvalue(), newline="", encoding="utf-8")

    got = _read(path, block_bytes=64)

    assert got.rows == [[float(label), ad or None, 1.5, site or None] for label, ad, _, site in rows]


def test_a_file_with_quoted_line_ends_is_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "\n" + '1,"two\nlines",0.5,x\n0,b,1.5,y\n' * 50)
    source = TabularSource([str(path)], COLUMNS, block_bytes=100)

    got = read(source)

    assert len(source.blocks()) > 5
    assert {source.count_rows(block) for block in source.blocks()} >= {None}
    assert got.rows == [[1, "two\nlines", 0.5, "x"], [0, "b", 1.5, "y"]] * 50
    assert got.numbers == list(range(100))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_copy_gives_the_same_rows(tmp_path: Path, compression: str) -> None:
    text = (HEADER + "\r\n" + "1,a,2,x\r\nbroken\r\n0,b,0.5,\r\n" * 30).encode()
    plain, packed = tmp_path / "t.csv", tmp_path / "t.csv.z"
    plain.write_bytes(text)
    packed.write_bytes(
        gzip.compress(text) if compression == "gzip" else pa.compress(text, "zstd", asbytes=True)
    )

    assert _read(packed) == _read(plain)
    assert len(_read(packed).rejected) == 30


def test_an_open_quote_that_swallows_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_table, "BATCH_BYTES", 200)
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "\n" + "1,a,2,x\n" * 10 + '1,"a,2,x\n' + "1,a,2,x\n" * 100)

    with pytest.raises(DataError, match=r"t\.csv: .*a row has more than 200 bytes; .* quote"):
        _read(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""])
@pytest.mark.parametrize("row", ['0,b,1,"5 inch', '0,"5 inch,1,y', '0,"b\nc",1,"5 inch'])
@pytest.mark.parametrize("after", [0, 3])
def test_a_quote_that_is_open_at_the_end_is_refused_with_the_line_of_its_row(
    tmp_path: Path, end: str, row: str, after: int
) -> None:
    path = tmp_path / "t.csv"
    newline = end or "\n"
    lines = [HEADER, "1,a,2,x", '1,"a\nb",2,x', row, *["1,a,2,x"] * after]
    path.write_bytes((newline.join(lines) + end).encode())

    with pytest.raises(DataError, match=r"t\.csv:5: a quote in the row that begins here is not closed"):
        _read(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "", "\n\n\n", "\n\r\n"])
@pytest.mark.parametrize("last", ['0,b,1,"y"', '0,b,1,""', '0,b,1,"y\n"', "broken", "0,b,1,y"])
def test_a_file_whose_quotes_are_closed_is_read_to_its_end(tmp_path: Path, end: str, last: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes((f'{HEADER}\n1,"a",2,x\n{last}{end}').encode())

    got = _read(path)

    rows = {'0,b,1,""': None, '0,b,1,"y\n"': "y\n"}
    good = [] if last == "broken" else [[0, "b", 1, rows.get(last, "y")]]
    assert got.rows == [[1, "a", 2, "x"], *good]
    assert got.reasons == ([(3, "1 fields instead of 4")] if last == "broken" else [])


def test_a_quote_that_is_open_in_the_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('click,ad,price,"site\n1,a,2,x\n')

    with pytest.raises(DataError, match=r"t\.csv: .*header does not end; perhaps a quote is not closed"):
        _read(path)


@pytest.mark.parametrize("block_bytes", [60, 1 << 20])
@pytest.mark.parametrize("quoted", ["y", '"y"'])
def test_a_malformed_row_that_is_not_utf8_is_rejected_alone(
    tmp_path: Path, block_bytes: int, quoted: str
) -> None:
    path = tmp_path / "t.csv"
    lines = [b"1,caf\xc3\xa9,1,x", b"0,caf\xe9\xff,1,x,more", b"0,caf\xe9,1,x", b"1,b,2," + quoted.encode()]
    path.write_bytes(b"\n".join([HEADER.encode(), *lines]) + b"\n")

    got = _read(path, block_bytes=block_bytes)

    assert got.rows == [[1, "café", 1, "x"], [1, "b", 2, "y"]]
    assert got.reasons == [
        (3, "5 fields instead of 4"),
        (4, r"ad 'caf\\xe9' is not UTF-8 text without NUL bytes"),
    ]
    assert got.rejected[0].text == r"0,caf\xe9\xff,1,x,more"


def test_kept_values_that_are_not_utf8_are_missing_and_those_with_nul_are_not(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"{HEADER},id\n1,a,1,x,1\n1,a,1,x,".encode() + b"caf\xe9\n1,a,1,x,\0\n")
    options = ColumnOptions(label=None, categorical=("ad",), only_named=True, kept=("id",))
    source = TabularSource([str(path)], options)

    (rows,) = source.read(source.blocks()[0], 0)

    assert rows.kept["id"].to_pylist() == ["1", None, "\0"]


@pytest.mark.parametrize("block_bytes", [40, 1 << 20])
def test_lines_that_end_in_cr_alone_are_rows(tmp_path: Path, block_bytes: int) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\r".join([HEADER, "1,a,2,x", "0,b,1,y", ""]).encode())

    assert _read(path, block_bytes=block_bytes).rows == [[1, "a", 2, "x"], [0, "b", 1, "y"]]


def test_a_header_longer_than_the_sample_has_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.tabular.CHECKED_BYTES", len(HEADER))
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\n1,a,2,x\n")

    assert _read(path).rows == [[1, "a", 2, "x"]]


def test_a_header_that_is_overlong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10)
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\n1,a,2,x\n")

    with pytest.raises(DataError, match=r"t\.csv:1: the header is longer than 10 bytes; .* LF"):
        _read(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_lone_carriage_return_gives_the_same_rows_for_any_size_of_blocks(tmp_path: Path, end: str) -> None:
    path = tmp_path / "t.csv"
    lines = ["1,a,0.5,x"] * 200
    lines[20] = lines[150] = "1,a\rb,2,x"
    lines[30] = "0,c,1.5,y\r1,d,2.5,z"
    path.write_bytes((end.join([HEADER, *lines]) + end).encode())

    whole = _read(path)
    for block_bytes in (300, 1000, 1 << 20):
        got = _read(path, block_bytes=block_bytes)
        assert (got.rows, got.numbers, got.rejected) == (whole.rows, whole.numbers, whole.rejected)
    assert whole.reasons == [
        (22, "2 fields instead of 4"),
        (23, "3 fields instead of 4"),
        (154, "2 fields instead of 4"),
        (155, "3 fields instead of 4"),
    ]
    assert len(whole.rows) == 199


@pytest.mark.parametrize("block_bytes", [30, 1 << 20])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_empty_lines_are_passed_over(tmp_path: Path, block_bytes: int, end: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(end.join([HEADER, "1,a,1,x", "", ",,,", "", "", "0,b,2,y", ",,,", ""]).encode())

    got = _read(path, block_bytes=block_bytes)

    assert got.numbers == [0, 5]
    assert got.reasons == [(line, "label missing is not 0 or 1") for line in (4, 8)]


def test_missing_rows_among_quotes_are_rejected_and_empty_lines_in_values_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f'{HEADER}\n1,"a\n\nb",1,x\n\n,"",,\n0,c,2,y\n')

    got = _read(path)

    assert got.rows == [[1, "a\n\nb", 1, "x"], [0, "c", 2, "y"]]
    assert got.reasons == [(6, "label missing is not 0 or 1")]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from(
            [
                *("1,a,1,x", '0,"a\nb",1,x', '0,"a\n\nb",1,"x\r\ny"', '0,"a\rb",1,x', ""),
                *("bad", '"b\nad",1', '2,"a\n",1,x', ",,,", "1,a,2," + "x" * 80),
                # Overlong lines at the beginning, in the middle, and at the end of a quoted value.
                *(
                    '3,"' + "x" * 80 + '\nb",1,x',
                    '3,"b\n' + "x" * 80 + '\n",1,x',
                    '3,"b\n' + "x" * 80 + '",1,x',
                ),
                *('3,"b\n\n' + "x" * 80 + '"", ""\n' + "x" * 80 + '",1', '3,"' + '""' * 35 + '",1,x'),
            ]
        ),
        min_size=1,
        max_size=20,
    ),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_rejected_rows_have_the_line_where_they_begin(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str
) -> None:
    path = tmp_path_factory.mktemp("table") / "t.csv"
    lines = ["1,a,1,x", *lines]
    path.write_bytes("".join(line + end for line in [HEADER, *lines]).encode())
    bad = ("bad", '"b\n', "2,", ",,,", "1,a,2,", "3,")
    expected = [
        1 + len("".join(each + end for each in [HEADER, *lines[:index]]).splitlines())
        for index, line in enumerate(lines)
        if line.startswith(bad)
    ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "MAX_LINE_BYTES", 60)
        patch.setattr(csv_table, "BATCH_BYTES", 90)
        got = _read(path, block_bytes=1 << 20)

    assert [rejected.line for rejected in got.rejected] == expected
    assert got.rows.count([1, "a", 1, "x"]) == lines.count("1,a,1,x")
