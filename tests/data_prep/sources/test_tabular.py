from __future__ import annotations

import csv
import gzip
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afm_dist.errors import DataError, OptionError
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.reading import read

CLICK = ColumnOptions(label="click")


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def _kinds(source: TabularSource) -> dict[str, str]:
    return {field.name: field.kind for field in source.fields}


def test_columns_are_inferred_and_shown(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "click,ad,price,code,void\n1,7,0.5,a1,\n0,8,NA,b2,\n1,9,3,c3,\n")

    source = TabularSource([path], CLICK)

    assert _kinds(source) == {
        "ad": "categorical",
        "price": "numeric",
        "code": "categorical",
        "void": "categorical",
    }
    assert [line.strip() for line in source.describe()] == [
        "click: (the label)",
        "ad: categorical (inferred: integers)",
        "price: numeric (inferred: decimal numbers)",
        "code: categorical (inferred: text)",
        "void: categorical (inferred: empty)",
    ]


def test_long_integers_are_identifiers_even_among_decimals(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "click,hash\n1,10710025208886284288\n0,1.42e+19\n")

    got = read(TabularSource([path], CLICK))

    assert got.rows == [[1, "10710025208886284288"], [0, "1.42e+19"]]


def test_options_overrule_what_is_inferred(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "click,ad,price,junk\n1,7,0.5,x\n0,8,1.5,y\n")
    options = ColumnOptions(label="click", categorical=("price",), numeric=("ad",), drop=("junk",))

    source = TabularSource([path], options)

    assert _kinds(source) == {"ad": "numeric", "price": "categorical"}
    assert read(source).rows == [[1, 7.0, "0.5"], [0, 8.0, "1.5"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ColumnOptions(label="clicked"), r"--label clicked: .* has no such column; it has: click, ad, price"),
        (ColumnOptions(label="click", numeric=("cost",)), r"--numeric cost: .* it has: click, ad, price"),
        (
            ColumnOptions(label="click", numeric=("ad",), drop=("ad",)),
            "--drop ad: .* also named by --numeric",
        ),
        (ColumnOptions(label="click", categorical=("click",)), "--categorical click: .* named by --label"),
        (ColumnOptions(label="click", drop=("ad", "price")), "no column is left"),
    ],
)
def test_options_that_name_the_wrong_column_are_refused(
    tmp_path: Path, options: ColumnOptions, message: str
) -> None:
    path = _write(tmp_path / "t.csv", "click,ad,price\n1,7,0.5\n")

    with pytest.raises(OptionError, match=message):
        TabularSource([path], options)


def test_rows_keep_their_line_numbers_around_malformed_ones(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "t.csv",
        'click,ad,price\n1,a,0.5\n2,b,1.5\n0,c\n1,"d, e",\n0,f,many\n'
        "1,g,1,1\n,h,1\n0,i,inf\n\n0,j,2.5\n1,k\n",
    )

    got = read(TabularSource([path], ColumnOptions(label="click", numeric=("price",))))

    assert got.rows == [[1, "a", 0.5], [1, "d, e", None], [0, "j", 2.5]]
    assert [number + 2 for number in got.numbers] == [2, 5, 11]
    assert got.reasons == [
        (3, "label '2' is not 0 or 1"),
        (4, "2 fields instead of 3"),
        (6, "price 'many' is not a finite number"),
        (7, "4 fields instead of 3"),
        (8, "label missing is not 0 or 1"),
        (9, "price 'inf' is not a finite number"),
        (12, "2 fields instead of 3"),
    ]


def test_line_numbers_hold_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.csv_table.BATCH_BYTES", 200)
    lines = [f"{i % 2},{i}" if i % 7 else "broken" for i in range(500)]
    path = _write(tmp_path / "t.csv", "click,ad\n" + "\n".join(lines) + "\n")

    got = read(TabularSource([path], CLICK))

    assert got.pieces > 10
    assert got.numbers == [i for i in range(500) if i % 7]
    assert got.rows == [[i % 2, str(i)] for i in got.numbers]
    assert [line - 2 for line, _ in got.reasons] == [i for i in range(500) if i % 7 == 0]


def test_bytes_that_are_not_text_are_rejected_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"click,ad\n1,caf\xc3\xa9\n0,caf\xe9\n0,\n")

    got = read(TabularSource([str(path)], CLICK))

    assert got.rows == [[1, "café"], [0, None]]
    assert got.reasons == [(3, r"ad 'caf\\xe9' is not UTF-8 text without NUL bytes")]


def test_tabs_gzip_quotes_and_windows_line_ends_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress(b'"click"\t"ad"\r\n1\t"two\nlines"\r\n0\t"a ""b"""\r\n'))

    got = read(TabularSource([str(path)], CLICK))

    assert got.rows == [[1, "two\nlines"], [0, 'a "b"']]
    assert got.reasons == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"click,ad\n", "a header and no rows"),
        (b"click,ad,ad\n1,2,3\n", "two columns are named 'ad'"),
        (b"click,a/d\n1,2\n", "column name 'a/d'"),
        (b"click," + "é".encode() * 101 + b"\n1,2\n", "column name 'é+'… has 202 bytes, more than the 200"),
        (
            gzip.compress(b"click,ad\n" + bytes(range(48, 58)) * 5000, mtime=0)[:-60],
            "truncated|cannot be read as CSV",
        ),
        (b"PAR1 but not really", "cannot be read as Parquet"),
    ],
)
def test_files_that_are_no_table_are_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)

    with pytest.raises(DataError, match=rf"t\.csv: .*({message})") as caught:
        TabularSource([str(path)], CLICK)
    assert "\n" not in str(caught.value)


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    first = _write(tmp_path / "a.csv", "click,ad\n1,2\n")
    second = _write(tmp_path / "b.csv", "click,bid\n1,2\n")

    with pytest.raises(DataError, match=r"b\.csv: its columns \(click, bid\) are not those of .*a\.csv"):
        TabularSource([first, second], CLICK)


def test_parquet_types_decide_and_row_groups_are_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sources.parquet_table.BLOCK_ROWS", 5)
    path = tmp_path / "t.parquet"
    frame = pl.DataFrame(
        {
            "click": [True, False, None] * 4,
            "ad": [7, None, 2**63] * 4,
            "site": ["x", "", None] * 4,
            "price": [0.5, float("nan"), 2.0] * 4,
        },
        schema_overrides={"ad": pl.UInt64},
    )
    frame.write_parquet(path, row_group_size=3)

    source = TabularSource([str(path)], CLICK)
    got = read(source)

    assert [(block.start, block.end) for block in source.blocks()] == [(0, 2), (2, 4)]
    assert _kinds(source) == {"ad": "categorical", "site": "categorical", "price": "numeric"}
    assert got.rows == [[1, "7", "x", 0.5], [0, None, None, None]] * 4
    assert got.numbers == [0, 1, 3, 4, 6, 7, 9, 10]
    assert got.reasons == [(line, "label missing is not 0 or 1") for line in (3, 6, 9, 12)]


def test_a_nested_parquet_column_must_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"click": [1, 0], "ad": ["a", "b"], "tags": [[1], [2]]}).write_parquet(path)

    with pytest.raises(
        OptionError, match=r"t\.parquet: column 'tags' has type .*list.*; leave it out with --drop tags"
    ):
        TabularSource([str(path)], CLICK)

    source = TabularSource([str(path)], ColumnOptions(label="click", drop=("tags",)))
    assert read(source).rows == [[1, "a"], [0, "b"]]


def test_parquet_files_without_rows_or_whole_content_are_refused_or_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, empty, cut = (str(tmp_path / f"{name}.parquet") for name in ("good", "empty", "cut"))
    frame = pl.DataFrame({"click": [1, 0], "ad": ["a", "b"]})
    frame.write_parquet(good)
    frame.clear().write_parquet(empty)
    Path(cut).write_bytes(Path(good).read_bytes()[:-30])

    with pytest.raises(DataError, match=r"empty\.parquet: the file has a header and no rows"):
        TabularSource([empty], CLICK)
    with pytest.raises(DataError, match=r"cut\.parquet: cannot be read as Parquet .*; fetch it again"):
        TabularSource([cut], CLICK)
    assert read(TabularSource([empty, good], CLICK)).rows == [[1, "a"], [0, "b"]]
    assert "empty.parquet: the file has a header and no rows; passed over" in capsys.readouterr().err


def test_a_header_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"click,caf\xe9\n1,2\n")

    with pytest.raises(DataError, match=r"t\.csv: cannot be read as CSV") as caught:
        TabularSource([str(path)], CLICK)
    assert "\n" not in str(caught.value)


def test_a_field_may_be_called_label_when_the_label_is_not(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "click,label,price\n1,0,2.5\n0,1,0.5\n1,x,1.5\n")

    got = read(TabularSource([path], CLICK))

    assert got.reasons == []
    assert got.rows == [[1, "0", 2.5], [0, "1", 0.5], [1, "x", 1.5]]


def test_a_real_log_reads_as_the_csv_module_reads_it() -> None:
    path = Path(__file__).parents[3].parent / "shared" / "data" / "kdd12_click_small.csv"
    if not path.exists():
        pytest.skip("development data is absent")

    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    click = header.index("click")
    columns = ColumnOptions(label="click", categorical=tuple(name for name in header if name != "click"))
    for block_bytes in (1 << 16, 1 << 30):
        got = read(TabularSource([str(path)], columns, block_bytes=block_bytes))

        assert got.reasons == []
        assert got.numbers == list(range(len(rows)))
        assert got.rows == [
            [float(row[click]), *(value or None for i, value in enumerate(row) if i != click)] for row in rows
        ]


def _parquet(path: Path, **columns: pa.Array) -> str:
    pq.write_table(pa.table({"click": pa.array([1, 0]), "ad": pa.array(["a", "b"]), **columns}), path)
    return str(path)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (pa.array([0, 1]), pa.array([0.0, None]), "type double, but int64 in .*one.*--numeric user, or"),
        (pa.array([0, 1]), pa.array([[0], [1]]), "type list<.*int64>, but int64 in .*one.* --drop user"),
        (pa.array([0, 1]), pa.array([True, False]), "type bool, but int64"),
        (pa.array(["0", "1"]), pa.array([0, 1]), "type int64, but string"),
    ],
)
def test_a_column_of_unlike_types_in_two_files_is_refused_unless_left_out(
    tmp_path: Path, one: pa.Array, other: pa.Array, message: str
) -> None:
    paths = [_parquet(tmp_path / "one", user=one), _parquet(tmp_path / "other", user=other)]

    with pytest.raises(DataError, match=f"other: column 'user' has {message}"):
        TabularSource(paths, CLICK)

    assert (
        read(TabularSource(paths, ColumnOptions(label="click", drop=("user",)))).rows
        == [
            [1, "a"],
            [0, "b"],
        ]
        * 2
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([7, 8], pa.int8()), pa.array([7, 8], pa.uint64())),
        (pa.array(["7", "8"]), pa.array(["7", "8"], pa.large_string())),
        (pa.array(["7", "8"]), pa.array([b"7", b"8"]).dictionary_encode()),
    ],
)
def test_types_that_spell_values_alike_are_read_together(
    tmp_path: Path, one: pa.Array, other: pa.Array
) -> None:
    paths = [_parquet(tmp_path / "one", user=one), _parquet(tmp_path / "other", user=other)]

    assert read(TabularSource(paths, CLICK)).rows == [[1, "a", "7"], [0, "b", "8"]] * 2


def test_numbers_may_be_integers_in_one_file_and_decimals_in_another(tmp_path: Path) -> None:
    paths = [
        _parquet(tmp_path / "one", price=pa.array([0, 1])),
        _parquet(tmp_path / "other", price=pa.array([0.5, None])),
    ]

    got = read(TabularSource(paths, ColumnOptions(label="click", numeric=("price",))))

    assert got.rows == [[1, "a", 0], [0, "b", 1], [1, "a", 0.5], [0, "b", None]]


def test_a_column_without_values_in_one_file_has_the_type_of_the_others(tmp_path: Path) -> None:
    paths = [
        _parquet(tmp_path / "one", price=pa.nulls(2)),
        _parquet(tmp_path / "other", price=pa.array([0.5, 1.5])),
    ]

    assert read(TabularSource(paths, CLICK)).rows == [
        [1, "a", None],
        [0, "b", None],
        [1, "a", 0.5],
        [0, "b", 1.5],
    ]


def test_csv_and_parquet_files_are_not_read_together(tmp_path: Path) -> None:
    paths = [_parquet(tmp_path / "one"), _write(tmp_path / "two.csv", "click,ad\n1,a\n")]

    with pytest.raises(DataError, match=r"two\.csv: the file is CSV, but .*one is Parquet"):
        TabularSource(paths, CLICK)


@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["x", None], pa.string_view()), ["x", None]),
        (pa.array([b"x", b"y"], pa.binary(1)), ["x", "y"]),
        (pa.array(["x", "x"]).dictionary_encode(), ["x", "x"]),
        (pa.array([5, 6]).dictionary_encode(), ["5", "6"]),
        (pa.array([0, 1], pa.date32()), ["1970-01-01", "1970-01-02"]),
        (pa.array([0, 1], pa.time32("s")), ["00:00:00", "00:00:01"]),
        (pa.array([0, 1], pa.timestamp("s")), None),
        (pa.array([1, 2], pa.decimal128(9, 2)), ["1.00", "2.00"]),
        (pa.array([1, 2], pa.float16()), None),
    ],
)
def test_every_listed_parquet_type_is_read_as_text(
    tmp_path: Path, values: pa.Array, tokens: list[str | None] | None
) -> None:
    path = _parquet(tmp_path / "t", user=values)

    got = read(TabularSource([path], ColumnOptions(label="click", categorical=("user",))))

    assert len(got.rows) == 2
    assert tokens is None or [row[2] for row in got.rows] == tokens


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 2], pa.duration("s")),
        pa.array([None, None], pa.decimal256(60, 2)),
        pa.array([{"x": 1}, {"x": 2}]),
    ],
)
def test_other_parquet_types_must_be_left_out(tmp_path: Path, values: pa.Array) -> None:
    path = _parquet(tmp_path / "t", user=values)

    for named in ({}, {"categorical": ("user",)}, {"numeric": ("user",)}):
        with pytest.raises(OptionError, match=r"t: column 'user' has type .*; leave it out with --drop user"):
            TabularSource([path], ColumnOptions(label="click", **named))
    with pytest.raises(OptionError, match=r"column 'user' has type .*; name another with --label"):
        TabularSource([path], ColumnOptions(label="user"))
    assert read(TabularSource([path], ColumnOptions(label="click", drop=("user",)))).rows == [
        [1, "a"],
        [0, "b"],
    ]
