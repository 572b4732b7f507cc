from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.dataset.vocabulary_file import read_count_range
from afm_dist.errors import DataError
from tests.small_dataset import write_dataset, write_shard, write_vocabulary

IDS = 300  # in row groups of 96


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Field, np.ndarray]:
    manifest = write_dataset(tmp_path_factory.mktemp("data"), splits={"train": (10,)})
    counts = np.arange(IDS)[::-1].copy()
    file = write_vocabulary(manifest.location, "large", counts)
    field = Field(name="large", kind="categorical", cardinality=IDS)
    return replace(manifest, vocabulary={"large": file}), field, counts


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.tuples(st.integers(0, IDS), st.integers(0, IDS)).map(sorted), batch=st.sampled_from([7, 1000]))
def test_counts_of_any_range_are_those_of_the_file(
    large: tuple[Manifest, Field, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    ends: list[int],
    batch: int,
) -> None:
    monkeypatch.setattr("afm_dist.dataset.vocabulary_file.BATCH_IDS", batch)
    manifest, field, counts = large
    start, stop = ends

    assert np.array_equal(read_count_range(manifest, field, start, stop), counts[start:stop])


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([0, 2, 1], [1, 1, 1], "not 0, 1, 2"),
        ([0, 1], [1, 1], "2 ids, but the manifest has 3"),
        ([0, 1, 2], [1, -1, 1], "negative"),
        ([0, 1, None], [1, 1, 1], "missing"),
    ],
)
def test_a_damaged_vocabulary_is_refused_by_name(
    tmp_path: Path, ids: list[int | None], counts: list[int], message: str
) -> None:
    import pyarrow as pa

    manifest = write_dataset(tmp_path, splits={"train": (10,)})
    columns = {
        "id": pa.array(ids, pa.int32()),
        "token": ["x"] * len(ids),
        "count": pa.array(counts, pa.int64()),
    }
    file = write_shard(str(tmp_path), "vocabulary/field.parquet", columns)
    field = Field(name="field", kind="categorical", cardinality=3)

    with pytest.raises(DataError, match=f"field.parquet: damaged vocabulary .*{message}"):
        read_count_range(replace(manifest, vocabulary={"field": file}), field, 0, 3)
