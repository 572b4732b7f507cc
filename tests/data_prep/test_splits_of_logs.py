"""Splits by file and by column, and derived fields, through a whole preparation."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from data_prep.pipeline import prepare
from data_prep.protocol import ColumnRule, Protocol
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from data_prep.split import SPLITS
from tests.data_prep.prepared import decoded, read_vocabulary
from tests.data_prep.raw_logs import Row, avazu_text

HOUR = "%y%m%d%H"
ONLY_SITE = (ColumnRule(column="[!sh]*", transform=None), ColumnRule(column="site_[dc]*", transform=None))
CLICK = ColumnOptions(label="click")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "train.csv"
    path.write_text(avazu_text(300))
    return path


def _raw(log: Path) -> pl.DataFrame:
    return pl.read_csv(log, infer_schema=False).with_columns(pl.all().fill_null(""))


def _avazu(log: Path, output: Path, columns: tuple[ColumnRule, ...], **options: Any) -> Manifest:
    protocol = Protocol(threshold=1, columns=(*ONLY_SITE, *columns), **options)
    return prepare(AvazuSource([str(log)], block_bytes=10_000), str(output), protocol)


def test_hours_of_avazu_split_in_the_order_of_time(
    log: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    made = _avazu(
        log,
        tmp_path,
        (ColumnRule(column="hour", transform="token"),),
        split_by="column",
        split_column="hour",
        validation_from="14102112",
        test_from="14102206",
    )

    raw = _raw(log)
    hour = pl.col("hour")
    wanted = {
        "train": raw.filter(hour < "14102112"),
        "validation": raw.filter((hour >= "14102112") & (hour < "14102206")),
        "test": raw.filter(hour >= "14102206"),
    }
    known = {entry[1] for entry in read_vocabulary(made, "site_id")}
    for split in SPLITS:
        rows = wanted[split].select("click", "site_id").rows()
        assert len(rows) > 30
        assert [[row[0], row[2]] for row in decoded(made, split)] == [
            [int(click), site if site in known else None] for click, site in rows
        ]
    # Later hours never occur in training: their tokens are unknown.
    assert {row[1] for row in decoded(made, "test")} == {None}


def test_hour_weekday_and_weekend_of_avazu_are_those_of_the_calendar(
    log: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    made = _avazu(
        log,
        tmp_path,
        tuple(
            ColumnRule(column="hour", transform=transform, field=field, time_format=HOUR)
            for field, transform in (("hour", "hour-of-day"), ("weekday", "weekday"), ("weekend", "weekend"))
        ),
        validation_share=0,
        test_share=0,
    )

    times = [datetime.strptime(hour, HOUR) for hour in _raw(log)["hour"]]
    assert [f.name for f in made.fields] == ["hour", "weekday", "weekend", "site_id"]
    assert [row[1:4] for row in decoded(made, "train")] == [
        [str(time.hour), str(time.isoweekday()), str(int(time.isoweekday() > 5))] for time in times
    ]
    assert [f.transform for f in made.fields[:2]] == [f"hour-of-day({HOUR})", f"weekday({HOUR})"]


def _table(path: Path, rows: list[str]) -> TabularSource:
    path.write_text("click,when,price,day\n" + "\n".join(rows) + "\n")
    return TabularSource([str(path)], CLICK, block_bytes=400)


def test_numbers_split_as_numbers_and_a_missing_one_is_rejected(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    generator = random.Random(0)
    days = [generator.choice([9.5, 10.25, 100.5]) for _ in range(60)]
    rows = [f"{i % 2},w{i},{day},x" for i, day in enumerate(days)]
    rows[7] = "1,w7,,x"
    protocol = Protocol(
        threshold=1,
        split_by="column",
        split_column="price",
        validation_from="10",
        test_from="100",
        max_bad_rows=0.1,
        columns=(ColumnRule(column="price", transform=None),),
    )

    made = prepare(_table(tmp_path / "t.csv", rows), str(tmp_path / "data"), protocol)

    sizes = {split: made.facts["splits"][split]["rows"] for split in SPLITS}
    counts = {day: sum(d == day for i, d in enumerate(days) if i != 7) for day in set(days)}
    assert sizes == {"train": counts[9.5], "validation": counts[10.25], "test": counts[100.5]}
    (name,) = storage.list_names(f"{made.location}/rejected")
    kept = storage.read_json(f"{made.location}/rejected/{name}", object)
    assert (kept["line"], kept["reason"]) == (9, "price is missing, and decides the split")


def test_times_that_cannot_be_read_are_rejected_and_missing_ones_stay(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    start = datetime(2024, 2, 28, 22)
    rows = [f"{i % 2},{start + timedelta(hours=i):%Y-%m-%d %H:%M},1.5,x" for i in range(50)]
    rows[3] = "1,yesterday,1.5,x"
    rows[4] = "1,,1.5,x"
    time_format = "%Y-%m-%d %H:%M"
    columns = (ColumnRule(column="when", transform="hour-of-day", time_format=time_format),)
    protocol = Protocol(threshold=1, columns=columns, max_bad_rows=0.1, validation_share=0, test_share=0)

    made = prepare(_table(tmp_path / "t.csv", rows), str(tmp_path / "data"), protocol)

    wanted: list[Row] = [[(22 + i) % 24] for i in range(50) if i != 3]
    assert [row[1] for row in decoded(made, "train")] == [
        "" if i == 3 else str(row[0]) for i, row in enumerate(wanted)
    ]
    (name,) = storage.list_names(f"{made.location}/rejected")
    kept = storage.read_json(f"{made.location}/rejected/{name}", object)
    assert (kept["line"], kept["reason"]) == (5, f"when 'yesterday' is not a time as {time_format} describes")


def test_the_last_day_is_held_out(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    for day in range(3):
        rows = "".join(f"{i % 2},d{day},{i}\n" for i in range(100))
        (tmp_path / f"day_{day}.csv").write_text("click,day,n\n" + rows)
    source = TabularSource([str(tmp_path / f"day_{day}.csv") for day in range(3)], CLICK, block_bytes=300)
    protocol = Protocol(threshold=1, split_by="last-file", validation_share=0.5, test_share=0.5)

    made = prepare(source, str(tmp_path / "data"), protocol)

    assert [row[1] for row in decoded(made, "train")] == ["d0"] * 100 + ["d1"] * 100
    held_out = [made.facts["splits"][split]["rows"] for split in ("validation", "test")]
    assert sum(held_out) == 100
    assert min(held_out) > 30
    # The day itself was never seen in training.
    assert {row[1] for split in ("validation", "test") for row in decoded(made, split)} == {None}


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    source = _table(tmp_path / "t.csv", [f"{i % 2},w,{i}.5,x" for i in range(20)])
    protocol = Protocol(split_by="column", split_column="price", test_from="-1")

    with pytest.raises(DataError, match="none of the 20 rows fell into the training split"):
        prepare(source, str(tmp_path / "data"), protocol)


def test_an_option_that_does_not_fit_the_log_is_refused_before_anything_is_written(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    source = _table(tmp_path / "t.csv", ["1,w,1.5,x", "0,w,1.5,x"])
    by_hour = Protocol(split_by="column", split_column="hour", test_from="1")
    clicks = Protocol(columns=(ColumnRule(column="day", transform="token", field="click"),))
    path = Protocol(columns=(ColumnRule(column="day", transform="token", field="a/b"),))

    with pytest.raises(OptionError, match="--split-column hour: the log has: when, price, day"):
        prepare(source, str(tmp_path / "data"), by_hour)
    with pytest.raises(DataError, match="preset default: two columns are named 'click'; rename one"):
        prepare(source, str(tmp_path / "data"), clicks)
    with pytest.raises(DataError, match="preset default: column name 'a/b' cannot name a vocabulary file"):
        prepare(source, str(tmp_path / "data"), path)

    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/etc/x", "..\\x", "a\\b", "a\0b", " ", ".x"])
def test_a_field_whose_name_is_a_path_is_refused_before_anything_is_written(
    tmp_path: Path, here: pytest.MonkeyPatch, name: str
) -> None:
    source = _table(tmp_path / "t.csv", ["1,w,1.5,x", "0,w,1.5,x"])
    named = Protocol(columns=(ColumnRule(column="day", transform="token", field=name),))

    with pytest.raises(DataError, match="cannot name a vocabulary file; rename the column"):
        prepare(source, str(tmp_path / "data"), named)
    (tmp_path / "u.csv").write_text(f"click,{name},ad\n" + "1,a,b\n0,a,b\n")
    with pytest.raises(DataError, match=r"cannot name a vocabulary file; rename the column|NUL"):
        TabularSource([str(tmp_path / "u.csv")], ColumnOptions(label="click"))

    assert not (tmp_path / "data").exists()
