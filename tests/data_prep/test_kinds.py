"""Whether a column holds ids or numbers is settled by all rows, in whatever order the files come."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from datetime import datetime
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.sources import csv_table
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.prepared import decoded, read_vocabulary

EVERYTHING = Protocol(threshold=1, validation_share=0, test_share=0)


def _csv(path: Path, values: Sequence[str]) -> str:
    rows = (f"{i % 2},x{i % 3},{value}\n" for i, value in enumerate(values))
    path.write_text("click,ad,user\n" + "".join(rows))
    return str(path)


def _parquet(path: Path, values: pa.Array) -> str:
    pq.write_table(pa.table({"click": [i % 2 for i in range(len(values))], "user": values}), path)
    return str(path)


def _prepare(folder: Path, paths: Sequence[str], **options: tuple[str, ...]) -> Manifest:
    source = TabularSource(list(paths), ColumnOptions(label="click", **options))
    return prepare(source, str(folder / f"data-{len(list(folder.iterdir()))}"), EVERYTHING)


def _tokens(made: Manifest) -> set[str | None]:
    return {token for _, token, _ in read_vocabulary(made, "user") if token is not None}


CONTRADICTIONS = {
    "floats of ids": (["7", "8"], ["7.0", "", "8.0"]),
    "fractions": (["7", "8"], ["9.25"] * 2),
    "after missing names": (["7", "NA"], ["7.0", "8.0"]),
    "as Java writes them": (["12345678", "8"], ["1.2345678E7", "8.0"]),
    "floats beyond their digits": (["7", "8"], ["1.42e+19", "8.0"]),
}


@pytest.mark.parametrize("name", ["floats of ids", "after missing names", "as Java writes them"])
def test_parts_of_which_one_writes_ids_as_decimals_are_refused_in_any_order(
    tmp_path: Path, here: pytest.MonkeyPatch, name: str
) -> None:
    ids, decimals = CONTRADICTIONS[name]
    paths = [_csv(tmp_path / "ids.csv", ids), _csv(tmp_path / "decimals.csv", decimals)]

    for order in permutations(paths):
        with pytest.raises(DataError) as caught:
            _prepare(tmp_path, order)
        for part in (
            "column 'user'",
            f"{paths[0]}:2",
            f"{paths[1]}:2",
            "--categorical user",
            "--numeric user",
        ):
            assert part in str(caught.value)


@pytest.mark.parametrize("name", ["floats of ids", "after missing names", "as Java writes them"])
def test_an_id_is_one_token_where_the_user_says_that_it_is_an_id(
    tmp_path: Path, here: pytest.MonkeyPatch, name: str
) -> None:
    ids, decimals = CONTRADICTIONS[name]
    paths = [_csv(tmp_path / "ids.csv", ids), _csv(tmp_path / "decimals.csv", decimals)]

    for order in permutations(paths):
        made = _prepare(tmp_path, order, categorical=("user",))
        assert _tokens(made) == {*ids, "8"} | ({""} if "" in decimals else set())


def test_parts_of_integers_and_of_fractions_are_numbers_in_any_order(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    paths = [_csv(tmp_path / "a.csv", ["3", "4"]), _csv(tmp_path / "b.csv", ["0.5", "1.5"])]

    for order in permutations(paths):
        assert [f.name for f in _prepare(tmp_path, order).numeric] == ["user"]


@pytest.mark.parametrize("later", ["9.25", "9.0", "1e5", "1.42e+19"])
@pytest.mark.parametrize("first", ["7", ""])
@pytest.mark.parametrize("typo", [[], ["typo"]])
def test_a_later_row_that_is_a_decimal_number_is_refused_by_its_line(
    tmp_path: Path, here: pytest.MonkeyPatch, first: str, later: str, typo: list[str]
) -> None:
    here.setattr(csv_table, "SAMPLE_ROWS", 5)
    path = _csv(tmp_path / "t.csv", [first] * 20 + typo + [later] + [first] * 3 + ["0.5"])

    with pytest.raises(DataError, match=rf"column 'user': .*t\.csv:{22 + len(typo)}\).*--numeric user"):
        _prepare(tmp_path, [path])

    assert not list(tmp_path.glob("data-*/manifest.json"))


@pytest.mark.parametrize(
    ("first", "later", "named"),
    [
        ("0.5", "10710025208886284288", "longer than a number keeps"),
        ("7.0", "8", "may hold ids or numbers"),
        ("7.0", "9007199254740993.0", "has more digits"),
    ],
)
def test_a_later_row_that_is_an_id_is_refused_by_its_line(
    tmp_path: Path, here: pytest.MonkeyPatch, first: str, later: str, named: str
) -> None:
    here.setattr(csv_table, "SAMPLE_ROWS", 5)
    path = _csv(tmp_path / "t.csv", [first] * 20 + [later])

    with pytest.raises(DataError, match=rf"column 'user'.*t\.csv:22\).*{named}.*--numeric user"):
        _prepare(tmp_path, [path])


def test_text_keeps_its_spelling(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    path = _csv(tmp_path / "t.csv", ["a", "7", "7.0", " 7", "007"])

    assert _tokens(_prepare(tmp_path, [path])) == {"a", "7", "7.0", " 7", "007"}


def test_integers_have_one_spelling_but_codes_keep_their_zeros(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    path = _csv(tmp_path / "t.csv", ["7", " 7", "+7", "007", " ", ""])

    assert _tokens(_prepare(tmp_path, [path])) == {"7", "007", ""}


def test_a_blank_number_is_missing(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    path = _csv(tmp_path / "t.csv", ["0.5", " ", "1.5", " NA "])

    made = _prepare(tmp_path, [path])

    assert [f.name for f in made.numeric] == ["user"]
    assert made.facts["missing_share"]["user"] == 0.5
    assert made.facts["rows_rejected"] == 0


def test_ids_that_lost_their_digits_are_warned_of(
    tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _csv(tmp_path / "t.csv", ["10710025208886284288", "1.42e+19"])

    _prepare(tmp_path, [path])

    assert "column 'user' is of ids, and '1.42e+19'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [pa.decimal128(38, 0), pa.decimal256(70, 0), pa.decimal64(18, 0)])
def test_decimals_of_scale_0_are_ids_with_all_their_digits(
    tmp_path: Path, here: pytest.MonkeyPatch, kind: pa.DataType
) -> None:
    ids = [9007199254740992 + i for i in range(20)]
    values = pa.array([decimal.Decimal(i) for i in ids] * 2, kind)

    made = _prepare(tmp_path, [_parquet(tmp_path / "t.parquet", values)])

    assert _tokens(made) == {str(i) for i in ids}


def test_integers_of_all_types_are_one_id(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    columns = [
        pa.array([7, None], pa.int8()),
        pa.array([7, 2**64 - 1], pa.uint64()),
        pa.array([decimal.Decimal(7)], pa.decimal128(10, 0)),
        pa.array([7, 7]).dictionary_encode(),
    ]
    paths = [_parquet(tmp_path / f"{i}.parquet", values) for i, values in enumerate(columns)]

    for order in (paths, paths[::-1]):
        assert _tokens(_prepare(tmp_path, order)) == {"7", str(2**64 - 1), ""}


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2.0**53, 2.0**60, 1.0]),
        pa.array([2.0**24 + 2, 1.0, 5.0], pa.float32()),
        pa.array([decimal.Decimal(2**60 + i) for i in range(3)], pa.decimal128(38, 10)),
    ],
)
def test_whole_floats_of_more_digits_than_they_keep_are_refused(
    tmp_path: Path, here: pytest.MonkeyPatch, values: pa.Array
) -> None:
    path = _parquet(tmp_path / "t.parquet", values)

    with pytest.raises(DataError, match=r"column 'user' .*t\.parquet:1\).*--numeric user"):
        _prepare(tmp_path, [path])

    assert [f.name for f in _prepare(tmp_path, [path], numeric=("user",)).numeric] == ["user"]


def test_large_numbers_with_fractions_are_numbers(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    path = _parquet(tmp_path / "t.parquet", pa.array([2.0**60, 0.5, None]))

    assert [f.name for f in _prepare(tmp_path, [path]).numeric] == ["user"]


@pytest.mark.parametrize("zone", ["+05:30", "-03:30", "GMT+5", "Z"])
def test_times_of_any_zone_are_read(tmp_path: Path, here: pytest.MonkeyPatch, zone: str) -> None:
    values = pa.array([datetime(2024, 3, 1), datetime(2024, 3, 2)], pa.timestamp("us", zone))

    made = _prepare(tmp_path, [_parquet(tmp_path / "t.parquet", values)])

    assert _tokens(made) == {"2024-03-01 00:00:00.000000+00:00", "2024-03-02 00:00:00.000000+00:00"}


def test_times_that_nanoseconds_cannot_hold_are_read_as_they_are(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    times = pa.array([datetime(9999, 12, 31), datetime(1, 1, 1)], pa.timestamp("us"))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"click": [0, 1], "at": times}), path, use_deprecated_int96_timestamps=True)

    made = _prepare(tmp_path, [str(path)])

    assert {row[1][:10] for row in decoded(made, "train")} == {"9999-12-31", "0001-01-01"}
