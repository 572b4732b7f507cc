from __future__ import annotations

import hashlib
from io import BytesIO

import numpy as np
import polars as pl
import pytest

from data_prep.sources.planted import BLOCK_ROWS, PART_ROWS, PlantedModel
from data_prep.sources.planted_shapes import AVAZU, CRITEO, SHAPES, ShapeName
from data_prep.sources.planted_text import FORMATS, LineWriter

SEED = 3
BLOCKS = PART_ROWS // BLOCK_ROWS
AVAZU_HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)
HEX = (
    "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
    "device_id", "device_ip", "device_model",
)  # fmt: skip


def _text(shape: ShapeName, *, blocks: int, count: int = BLOCK_ROWS) -> bytes:
    model = PlantedModel(SHAPES[shape], SEED)
    writer = LineWriter(FORMATS[shape], model)
    file = BytesIO()
    for index in range(blocks):
        writer.write(writer.frame(model.block(index)).head(count), file, first=index == 0)
    return file.getvalue()


@pytest.fixture(scope="module")
def criteo() -> pl.DataFrame:
    return pl.read_csv(
        _text("criteo", blocks=1), separator="\t", has_header=False, infer_schema_length=BLOCK_ROWS
    )


@pytest.fixture(scope="module")
def avazu() -> pl.DataFrame:
    """One file; the ids are beyond what is inferred to be an integer."""
    return pl.read_csv(
        _text("avazu", blocks=BLOCKS), schema_overrides={"id": pl.UInt64}, infer_schema_length=BLOCK_ROWS
    )


def test_criteo_has_a_label_13_integers_and_26_tokens(criteo: pl.DataFrame) -> None:
    assert criteo.dtypes == [*[pl.Int64] * 14, *[pl.String] * 26]
    assert criteo.height == BLOCK_ROWS
    assert criteo.to_series(0).unique().sort().to_list() == [0, 1]
    for name in criteo.columns[14:]:
        assert criteo[name].drop_nulls().str.contains("^[0-9a-f]{8}$").all()


def test_criteo_leaves_missing_values_empty(criteo: pl.DataFrame) -> None:
    rows = PlantedModel(CRITEO, SEED).block(0)
    cardinalities = np.array([field.cardinality for field in CRITEO.tokens])

    missing = np.stack([criteo[name].is_null().to_numpy() for name in criteo.columns[1:]], axis=1)

    assert np.array_equal(missing, np.hstack([rows.integer_missing, rows.ids == cardinalities]))


def test_criteo_holds_the_planted_integers(criteo: pl.DataFrame) -> None:
    rows = PlantedModel(CRITEO, SEED).block(0)
    for n in range(13):
        given = ~rows.integer_missing[:, n]
        assert criteo.to_series(1 + n).drop_nulls().to_list() == rows.integers[given, n].tolist()


def test_avazu_has_its_header_and_24_columns(avazu: pl.DataFrame) -> None:
    assert ",".join(avazu.columns) == AVAZU_HEADER
    assert avazu.height == PART_ROWS
    assert set(avazu["click"].to_list()) == {0, 1}
    kinds = {name: pl.String if name in HEX else pl.Int64 for name in avazu.columns[1:]}
    assert avazu.schema == {"id": pl.UInt64, **kinds}
    for name in HEX:
        assert avazu[name].str.contains("^[0-9a-f]{8}$").all()


def test_avazu_ids_are_unsigned_64_bit_and_unique(avazu: pl.DataFrame) -> None:
    assert avazu["id"].n_unique() == PART_ROWS
    assert avazu["id"].max() > 2**63


def test_avazu_hours_rise_over_ten_days_in_october_2014(avazu: pl.DataFrame) -> None:
    hours = avazu["hour"]

    assert hours.is_sorted()
    assert hours.unique().to_list() == [
        14_10_00_00 + day * 100 + h for day in range(21, 31) for h in range(24)
    ]


def test_avazu_columns_have_their_cardinalities(avazu: pl.DataFrame) -> None:
    """Real ones from the published vocabulary sizes; large ones are cut, and rare tokens may not occur."""
    seen = {name: avazu[name].n_unique() for name in avazu.columns}
    small = {
        "hour": 240, "C1": 7, "banner_pos": 7, "site_category": 26, "app_category": 36, "device_type": 5,
        "device_conn_type": 4, "C15": 8, "C16": 9, "C17": 435, "C18": 4, "C19": 68, "C20": 172, "C21": 60,
    }  # fmt: skip
    assert {name: seen[name] for name in small} == small
    for name, cardinality in (
        ("site_id", 4_737),
        ("site_domain", 7_745),
        ("app_id", 8_552),
        ("app_domain", 559),
        ("device_model", 8_251),
        ("C14", 2_626),
    ):
        assert 0.5 * cardinality < seen[name] <= cardinality


def test_avazu_marks_what_is_missing_with_its_own_tokens(avazu: pl.DataFrame) -> None:
    shares = {
        field.name: ((avazu[field.name].cast(pl.String) == field.missing_text).mean(), field.missing)
        for field in AVAZU.tokens
        if field.missing
    }

    assert avazu.null_count().sum_horizontal().item() == 0
    assert avazu["C20"].min() == -1
    assert len(shares) == 8
    for share, wanted in shares.values():
        assert share == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / PART_ROWS))


def test_the_truth_of_avazu_has_the_hours_of_the_log(avazu: pl.DataFrame) -> None:
    model = PlantedModel(AVAZU, SEED)

    truth = LineWriter(FORMATS["avazu"], model).truth(model.block(1))

    lines = avazu.slice(BLOCK_ROWS, BLOCK_ROWS)
    assert truth.columns == ["row", "label", "probability", "hour"]
    assert truth["hour"].to_list() == lines["hour"].cast(pl.String).to_list()
    assert truth["label"].to_list() == lines["click"].to_list()


def test_fewer_rows_are_the_first_lines() -> None:
    whole = _text("avazu", blocks=1)

    short = _text("avazu", blocks=1, count=1000)

    assert whole.startswith(short)
    assert short.count(b"\n") == 1001


@pytest.mark.parametrize(
    ("shape", "digest"),
    [
        ("criteo", "5313c81b645d5d18bada7ebbc6e571d82dd358ac0825ca0151b3d982e0b23c1c"),
        ("avazu", "f75958afbd475adb7dc1bc10cba1a1fc8e5b0e3e345b446e8c59163fff2bd258"),
    ],
)
def test_a_seed_gives_the_same_bytes_in_every_release(shape: ShapeName, digest: str) -> None:
    """Where they have to change, ``GENERATOR_VERSION`` changes with them."""
    assert hashlib.sha256(_text(shape, blocks=1, count=2000)).hexdigest() == digest


@pytest.mark.parametrize("shape", SHAPES)
def test_the_stated_length_of_a_line_is_about_right(shape: ShapeName) -> None:
    assert len(_text(shape, blocks=1)) / BLOCK_ROWS == pytest.approx(SHAPES[shape].bytes_per_row, rel=0.02)
