from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afm_dist.dataset import frequencies
from afm_dist.dataset.frequencies import Frequencies, read_vocabulary
from afm_dist.dataset.manifest import Field, Manifest, Shard
from afm_dist.errors import DataError
from tests.small_dataset import write_shard

FIELD = Field(name="ad", kind="categorical", cardinality=13)
COUNTS = [50, 900, 70, 70, 69, 30, 9, 9, 9, 2, 2, 1, 0]


@given(st.lists(st.integers(0, 6) | st.integers(0, 1000), max_size=40), st.integers(0, 100), st.data())
def test_frequencies_answer_like_the_list_of_counts(
    counts: list[int], unknown: int, data: st.DataObject
) -> None:
    counts = sorted(counts, reverse=True)
    found = Frequencies(unknown, Counter(counts))
    ids = data.draw(st.integers(1, len(counts) + 3))
    rows = data.draw(st.integers(1, sum(counts) + 2))
    least = data.draw(st.integers(0, 1001))

    assert (found.ids, found.known, found.rows) == (len(counts), sum(counts), sum(counts) + unknown)
    assert found.rows_of(ids) == sum(counts[:ids])
    enough = (n for n in range(len(counts) + 1) if sum(counts[:n]) >= rows)
    assert found.ids_for(rows) == next(enough, None)
    frequent = [count for count in counts if count >= least]
    assert found.at_least(least) == (len(frequent), sum(frequent))


def manifest_of(location: Path, columns: dict[str, Any], row_group_rows: int = 5) -> Manifest:
    file = write_shard(str(location), "vocabulary/ad.parquet", columns, row_group_rows=row_group_rows)
    train = Shard(path="train/part-00000.parquet", rows=sum(COUNTS), bytes=0, sha256="")
    return Manifest(
        location=str(location),
        label="click",
        fields=(FIELD,),
        splits={"train": (train,)},
        vocabulary={"ad": file},
    )


def columns_of(**changed: Any) -> dict[str, Any]:
    whole = {
        "id": pa.array(range(len(COUNTS)), pa.int32()),
        "token": pa.array([None, "a", "", "ü", *(f"t{i}" for i in range(4, len(COUNTS)))]),
        "count": pa.array(COUNTS, pa.int64()),
    }
    return {**whole, **changed}


@pytest.mark.parametrize("row_group_rows", [1, 5, 13])
@pytest.mark.parametrize("batch_ids", [1, 3, 5, 100])
@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string()])
def test_a_vocabulary_reads_the_same_in_pieces_of_any_size(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row_group_rows: int,
    batch_ids: int,
    text_type: pa.DataType,
) -> None:
    monkeypatch.setattr(frequencies, "BATCH_IDS", batch_ids)
    columns = columns_of(token=columns_of()["token"].cast(text_type))
    manifest = manifest_of(tmp_path, columns, row_group_rows)

    read = read_vocabulary(manifest, FIELD, 3)

    assert read.top == (("a", 900), ("", 70), ("ü", 70))
    found = read.frequencies
    assert (found.unknown, found.ids, found.rows) == (50, 12, sum(COUNTS))
    assert [found.rows_of(ids) for ids in range(1, 13)] == np.cumsum(COUNTS[1:]).tolist()


def test_a_vocabulary_of_nothing_but_the_unknown_has_no_top(tmp_path: Path) -> None:
    field = replace(FIELD, cardinality=1)
    manifest = manifest_of(tmp_path, {"id": pa.array([0], pa.int32()), "token": pa.array([None], pa.string()),
                                      "count": [sum(COUNTS)]})  # fmt: skip

    read = read_vocabulary(replace(manifest, fields=(field,)), field, 3)

    assert read.top == ()
    assert (read.frequencies.known, read.frequencies.ids_for(1)) == (0, None)


def other(counts: list[int]) -> pa.Array:
    return pa.array(counts, pa.int64())


@pytest.mark.parametrize("batch_ids", [1, 100])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count": other([50, 70, 900, *COUNTS[3:]])}, "not in order of descending count"),
        ({"count": other([*COUNTS[:4], 69, 70, 29, *COUNTS[7:]])}, "not in order of descending count"),
        ({"count": other([*COUNTS[:11], 0, 1])}, "not in order of descending count"),
        ({"count": other([*COUNTS[:11], 2, -1])}, "a count is negative"),
        ({"count": other([-1, 951, *COUNTS[2:]])}, "a count is negative"),
        ({"count": other([51, *COUNTS[1:]])}, r"13 ids with 1222 occurrences, but .* 1221 training rows"),
        ({"count": other([None, *COUNTS[1:]])}, "an id or a count is missing"),
        ({"count": pa.array(COUNTS, pa.float64())}, "column 'count' holds double"),
        ({"id": pa.array([0, 2, 1, *range(3, 13)], pa.int32())}, "not 0, 1, 2, … in order"),
        ({"id": pa.array(range(1, 14), pa.int32())}, "not 0, 1, 2, … in order"),
        ({"token": pa.array(range(13))}, "column 'token' holds int64"),
        ({"token": pa.array([b"", b"\xff", *[b"x"] * 11]).view(pa.string())}, "utf-8"),
    ],
)
def test_a_vocabulary_that_breaks_the_contract_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_ids: int, changed: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(frequencies, "BATCH_IDS", batch_ids)
    manifest = manifest_of(tmp_path, columns_of(**changed))

    with pytest.raises(DataError, match=rf"vocabulary/ad\.parquet: damaged .*{message}") as error:
        read_vocabulary(manifest, FIELD, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("absent", ["id", "token", "count"])
def test_a_vocabulary_without_a_column_is_refused(tmp_path: Path, absent: str) -> None:
    columns = columns_of()
    del columns[absent]

    with pytest.raises(DataError, match=rf"ad\.parquet: .*column '{absent}' holds nothing"):
        read_vocabulary(manifest_of(tmp_path, columns), FIELD, 3)


def test_a_vocabulary_without_rows_is_refused(tmp_path: Path) -> None:
    empty = {name: column.slice(0, 0) for name, column in columns_of().items()}

    with pytest.raises(DataError, match=r"ad\.parquet: damaged vocabulary"):
        read_vocabulary(manifest_of(tmp_path, empty), FIELD, 3)


def test_a_vocabulary_with_an_id_less_is_refused_though_its_counts_add_up(tmp_path: Path) -> None:
    assert COUNTS[-1] == 0
    shorter = {name: column.slice(0, len(COUNTS) - 1) for name, column in columns_of().items()}

    with pytest.raises(DataError, match="12 ids with 1221 occurrences, but the manifest has 13 ids"):
        read_vocabulary(manifest_of(tmp_path, shorter), FIELD, 3)


def test_a_vocabulary_of_another_size_than_promised_is_refused(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, columns_of())
    longer = replace(manifest, vocabulary={"ad": replace(manifest.vocabulary["ad"], bytes=7)})

    with pytest.raises(DataError, match=r"ad\.parquet: .* bytes where the manifest promises 7"):
        read_vocabulary(longer, FIELD, 3)


def test_a_field_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    manifest = replace(manifest_of(tmp_path, columns_of()), vocabulary={})

    with pytest.raises(DataError, match="lists no vocabulary of field 'ad'"):
        read_vocabulary(manifest, FIELD, 3)


def test_a_vocabulary_is_read_through_a_uri(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, columns_of())

    assert read_vocabulary(replace(manifest, location=tmp_path.as_uri()), FIELD, 1).top == (("a", 900),)
