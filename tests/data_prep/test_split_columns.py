"""Columns that decide the split, of every type: compared as what they are, or refused."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.prepared import split_sizes

CLICK = ColumnOptions(label="click", drop=("day",))
DAYS = [datetime(2024, 4, 8) + timedelta(hours=12 * i) for i in range(12)]


def _csv(path: Path, values: Sequence[str]) -> str:
    rows = (f"{i % 2},x,{value}\n" for i, value in enumerate(values))
    path.write_text("click,ad,day\n" + "".join(rows))
    return str(path)


def _parquet(path: Path, values: pa.Array, **options: Any) -> str:
    clicks = [i % 2 for i in range(len(values))]
    pq.write_table(pa.table({"click": clicks, "ad": ["x"] * len(values), "day": values}), path, **options)
    return str(path)


def _prepare(paths: str | list[str], validation: str | None, test: str | None, **options: Any) -> Manifest:
    paths = [paths] if isinstance(paths, str) else paths
    protocol = Protocol(
        threshold=1,
        split_by="column",
        split_column="day",
        validation_from=validation,
        test_from=test,
        **options,
    )
    return prepare(TabularSource(paths, CLICK, block_bytes=60), str(Path(paths[0]).parent / "data"), protocol)


def _sizes(*arguments: Any, **options: Any) -> list[int]:
    return list(split_sizes(_prepare(*arguments, **options)).values())


WRITTEN = {
    "ISO": "%Y-%m-%d %H:%M",
    "with T": "%Y-%m-%dT%H:%M:%S.123",
    "slashes": "%Y/%m/%d %H:%M:%S",
    "unpadded": "%Y-%-m-%-d %-H:%M",
    "Z": "%Y-%m-%dT%H:%MZ",
    "offset": "%Y-%m-%d %H:%M+05:30",
}


@pytest.mark.parametrize("form", WRITTEN.values(), ids=WRITTEN)
def test_times_in_a_csv_are_compared_as_times(tmp_path: Path, here: pytest.MonkeyPatch, form: str) -> None:
    path = _csv(tmp_path / "t.csv", [day.strftime(form) for day in DAYS])

    assert _sizes(path, "2024-4-9", "2024-04-12") == [2, 6, 4]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize(("zone", "ahead"), [(None, 0), ("UTC", 0), ("+05:30", 5.5), ("Europe/Berlin", 2)])
def test_a_bound_is_a_time_of_the_columns_zone(
    tmp_path: Path, here: pytest.MonkeyPatch, unit: str, zone: str | None, ahead: float
) -> None:
    values = pa.array([day - timedelta(hours=ahead) for day in DAYS], pa.timestamp(unit, zone))

    assert _sizes(_parquet(tmp_path / "t.parquet", values), "2024-04-09", "2024-04-12") == [2, 6, 4]


@pytest.mark.parametrize(
    ("values", "validation", "test"),
    [
        (pa.array([day.date() for day in DAYS]), "2024-04-09", "2024-04-12"),
        (pa.array([day.date() for day in DAYS], pa.date64()), "2024-04-09", "2024-04-12"),
        (pa.array([day.isoformat() for day in DAYS]).dictionary_encode(), "2024-04-09", "2024-04-12"),
        (pa.array([day.isoformat().encode() for day in DAYS]), "2024-04-09", "2024-04-12"),
        (pa.array([time(i) for i in range(12)]), "02:00", "08:00"),
        (pa.array([time(i) for i in range(12)], pa.time32("ms")), "2:00", "07:00:00.001"),
        (pa.array(range(-2, 10)), "0", "6"),
        (pa.array([i / 2 for i in range(12)], pa.float32()), "1", "4"),
        (pa.array([2**64 - 12 + i for i in range(12)], pa.uint64()), str(2**64 - 10), str(2**64 - 4)),
        (pa.array([2**60 + i for i in range(12)]), str(2**60 + 2), str(2**60 + 8)),
        (
            pa.array([decimal.Decimal(2**60 + i) for i in range(12)], pa.decimal128(30, 2)),
            str(2**60 + 2),
            f"{2**60 + 7}.5",
        ),
    ],
)
def test_every_type_is_compared_as_what_it_is(
    tmp_path: Path, here: pytest.MonkeyPatch, values: pa.Array, validation: str, test: str
) -> None:
    assert _sizes(_parquet(tmp_path / "t.parquet", values), validation, test) == [2, 6, 4]


@pytest.mark.parametrize(
    ("values", "validation", "test"),
    [
        ([str(i) for i in range(12)], "2", "8"),
        ([str(i - 10) for i in range(12)], "-8", "-2"),
        ([f" {i}.50" for i in range(12)], "2", "8.5"),
        ([str(1711929600000000000 + i) for i in range(12)], "1711929600000000002", "1711929600000000008"),
        ([f"{i + 4}:30" for i in range(12)], "6:00", "12:15"),
    ],
)
def test_numbers_and_times_of_day_in_a_csv_are_compared_as_such(
    tmp_path: Path, here: pytest.MonkeyPatch, values: list[str], validation: str, test: str
) -> None:
    assert _sizes(_csv(tmp_path / "t.csv", values), validation, test) == [2, 6, 4]


@pytest.mark.parametrize("int96", [False, True])
def test_times_beyond_nanoseconds_stay_where_they_are(
    tmp_path: Path, here: pytest.MonkeyPatch, int96: bool
) -> None:
    days = [datetime(1, 1, 1), *DAYS[:2], datetime(9999, 12, 31), datetime(9999, 12, 31)]
    values = pa.array(days, pa.timestamp("us"))
    path = _parquet(tmp_path / "t.parquet", values, use_deprecated_int96_timestamps=int96)

    assert _sizes(path, "2024-04-08 06:00", "2025-01-01") == [2, 1, 2]


def test_text_of_times_beyond_nanoseconds_stays_where_it_is(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    path = _csv(tmp_path / "t.csv", ["0001-01-01", "2024-04-08", "2024-04-09", "9999-12-31"])

    assert _sizes(path, "2024-04-09", "9999-01-01") == [2, 1, 1]


@pytest.mark.parametrize(
    "bound", ["11/04/2024", "04.11.2024", "20240411T00", "2024-02-30", "yesterday", "NaN", ""]
)
def test_a_bound_without_an_order_is_refused(tmp_path: Path, here: pytest.MonkeyPatch, bound: str) -> None:
    path = _csv(tmp_path / "t.csv", ["10/04/2024", "11/04/2024"])

    with pytest.raises(OptionError, match=r"--test-from .*: neither a number nor a time .* column 'day'"):
        _prepare(path, None, bound)


@pytest.mark.parametrize("odd", ["11/04/2024", "2024-02-30", "20240411", "soon", "", " ", "NA"])
def test_a_value_without_an_order_is_malformed_wherever_it_stands(
    tmp_path: Path, here: pytest.MonkeyPatch, odd: str
) -> None:
    path = _csv(tmp_path / "t.csv", [f"{day:%Y-%m-%d}" for day in DAYS] * 3 + [odd])

    with pytest.raises(DataError, match=r"1 of 37 rows are malformed.*t\.csv:38 day "):
        _prepare(path, "2024-04-09", "2024-04-12")

    assert _sizes(path, "2024-04-09", "2024-04-12", max_bad_rows=0.1) == [6, 18, 12]


@pytest.mark.parametrize("other", ["2024-04-10 12:00+02:00", "2024-04-10 12:00"])
def test_times_of_several_zones_need_bounds_with_a_zone(
    tmp_path: Path, here: pytest.MonkeyPatch, other: str
) -> None:
    path = _csv(tmp_path / "t.csv", [f"{day:%Y-%m-%d %H:%M}+01:00" for day in DAYS] + [other])

    with pytest.raises(DataError, match=r"several time zones: .*t\.csv:2\) has \+01:00, .*t\.csv:14\)"):
        _prepare(path, "2024-04-09", "2024-04-12")

    if "+" in other:
        assert _sizes(path, "2024-04-09T00:00+01:00", "2024-04-10T11:30+01:00") == [2, 4, 7]
    else:
        with pytest.raises(DataError, match=r"t\.csv:14 day '2024-04-10 12:00' has no time zone"):
            _prepare(path, "2024-04-09T00:00+01:00", "2024-04-12T00:00+01:00")


@pytest.mark.parametrize(
    ("values", "bound", "message"),
    [
        (pa.array([1, 2]), "2024-04-11", "type int64 in .*, a number, but '2024-04-11' is a time"),
        (pa.array([date(2024, 1, 1)]), "20240411", "a time, but '20240411' is a number"),
        (pa.array([1], pa.duration("s")), "1", "neither number nor time nor text"),
        (pa.array([[1]]), "1", "neither number nor time nor text"),
        (pa.array([1], pa.timestamp("s")), "2024-04-11T00:00Z", "no time zone"),
        (pa.array([1], pa.timestamp("s", "Nowhere/X")), "2024-04-11", "time zone 'Nowhere/X' .* not known"),
    ],
)
def test_a_type_that_does_not_compare_with_the_bounds_is_refused_at_once(
    tmp_path: Path, here: pytest.MonkeyPatch, values: pa.Array, bound: str, message: str
) -> None:
    path = _parquet(tmp_path / "t.parquet", values)

    with pytest.raises(OptionError, match=f"--split-column day: .*{message}"):
        _prepare(path, None, bound)


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        ("2024-04-09", "2025-01-01", "--test-from 2025-01-01: no row falls into the test split"),
        ("2020-01-01", "2024-04-09", "none of the 12 rows fell into the training split"),
        (
            "2024-04-09",
            "2024-04-09 06:00",
            "--validation-from 2024-04-09: no row falls into the validation split",
        ),
    ],
)
def test_a_split_that_would_be_empty_is_refused_with_the_values_there_are(
    tmp_path: Path, here: pytest.MonkeyPatch, validation: str, test: str, message: str
) -> None:
    path = _csv(tmp_path / "t.csv", [f"{day:%Y-%m-%d}" for day in DAYS if day.day != 9])
    if "12 rows" in message or "test split" in message:
        path = _csv(tmp_path / "t.csv", [f"{day:%Y-%m-%d}" for day in DAYS])

    with pytest.raises(
        DataError, match=rf"{message}.* from '2024-04-08' \(.*t\.csv:2\) to '2024-04-13' \(.*:"
    ):
        _prepare(path, validation, test)


def test_files_of_several_types_are_compared_by_their_own(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    paths = [
        _parquet(tmp_path / "1.parquet", pa.array([day.date() for day in DAYS])),
        _parquet(tmp_path / "2.parquet", pa.array(DAYS, pa.timestamp("ns"))),
        _parquet(tmp_path / "3.parquet", pa.array([day.isoformat() for day in DAYS])),
    ]

    assert _sizes(paths, "2024-04-09", "2024-04-12") == [6, 18, 12]


def test_a_column_that_decides_the_split_is_a_field_only_where_it_is_named(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    path = _csv(tmp_path / "t.csv", [f"{day:%Y-%m-%d}" for day in DAYS])
    protocol = Protocol(split_by="column", split_column="day", test_from="2024-04-12", threshold=1)

    for number, (options, fields) in enumerate(
        [({}, ["ad"]), ({"drop": ("day",)}, ["ad"]), ({"categorical": ("day",)}, ["ad", "day"])]
    ):
        source = TabularSource([path], ColumnOptions(label="click", **options))  # type: ignore[arg-type]
        assert [f.name for f in prepare(source, f"{tmp_path}/{number}", protocol).fields] == fields
