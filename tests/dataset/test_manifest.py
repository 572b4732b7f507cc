from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afm_dist import storage
from afm_dist.dataset.manifest import MAX_GROUPS, Field, Manifest, Shard
from afm_dist.errors import DataError
from tests.small_dataset import FIELDS


def shards(n: int, prefix: str = "train") -> tuple[Shard, ...]:
    return tuple(
        Shard(path=f"{prefix}/part-{i:05d}.parquet", rows=i + 1, bytes=100 + i, sha256=f"{i:064x}")
        for i in range(n)
    )


def vocabulary(digit: str) -> Shard:
    return Shard(path="vocabulary/x.parquet", rows=3, bytes=9, sha256=64 * digit)


def manifest(location: str = "data", n: int = 7) -> Manifest:
    return Manifest(
        location=location,
        label="click",
        fields=FIELDS,
        splits={"train": shards(n), "validation": shards(2, "validation"), "test": ()},
        vocabulary={"site": vocabulary("a"), "ad": vocabulary("b")},
        preset="criteo-x4",
        seed=3,
        sources=({"name": "day_0", "bytes": 5, "sha256": "ab"},),
        facts={"bayes_auc": 0.8},
    )


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    original = manifest(str(tmp_path))

    original.save()

    assert Manifest.load(str(tmp_path)) == original


def test_a_manifest_says_in_which_order_the_training_rows_lie(tmp_path: Path) -> None:
    replace(manifest(str(tmp_path)), row_order="shuffled").save()

    assert storage.read_json(str(tmp_path / "manifest.json"), dict[str, Any])["row_order"] == "shuffled"
    assert Manifest.load(str(tmp_path)).row_order == "shuffled"


def test_a_manifest_of_an_earlier_release_is_of_the_log_s_order_and_keeps_its_fingerprint(
    tmp_path: Path,
) -> None:
    manifest(str(tmp_path)).save()

    assert "row_order" not in storage.read_json(str(tmp_path / "manifest.json"), dict[str, Any])
    assert Manifest.load(str(tmp_path)).row_order == "log"
    # As it was computed before manifests said so.
    assert manifest().fingerprint() == "0b2a787a4acba2af735ee00cb79a644864fba520a2ca60a3506d0aa1e47b59b0"


def test_an_unknown_row_order_is_refused_by_name(tmp_path: Path) -> None:
    manifest(str(tmp_path)).save()
    path = str(tmp_path / "manifest.json")
    storage.write_json(path, {**storage.read_json(path, dict[str, Any]), "row_order": "sorted"})

    with pytest.raises(DataError, match=r"manifest\.json: damaged .*row_order"):
        Manifest.load(str(tmp_path))


def test_the_fingerprint_ignores_where_the_data_lies() -> None:
    assert manifest("here").fingerprint() == manifest("there").fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"label": "buy"},
        {"seed": 4},
        {"fields": FIELDS[:2]},
        {"fields": (replace(FIELDS[0], cardinality=31), *FIELDS[1:])},
        {"splits": {"train": shards(7)[::-1]}},
        {"vocabulary": {"site": vocabulary("a"), "ad": vocabulary("c")}},
        {"facts": {"bayes_auc": 0.81}},
        {"row_order": "shuffled"},
    ],
    ids=["label", "seed", "fields", "cardinality", "shards", "vocabulary", "facts", "row order"],
)
def test_the_fingerprint_sees_the_content(change: dict[str, Any]) -> None:
    assert replace(manifest(), **change).fingerprint() != manifest().fingerprint()


def test_the_fingerprint_sees_a_checksum() -> None:
    altered = list(shards(7))
    altered[3] = replace(altered[3], sha256="f" * 64)

    changed = replace(manifest(), splits={**manifest().splits, "train": tuple(altered)})

    assert changed.fingerprint() != manifest().fingerprint()


@given(n=st.integers(1, 700), limit=st.integers(1, MAX_GROUPS))
def test_groups_partition_the_shards_in_order_and_evenly(n: int, limit: int) -> None:
    groups = manifest(n=n).groups("train", limit)

    assert [shard for group in groups for shard in group] == list(shards(n))
    assert len(groups) == min(n, limit)
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1


def test_there_are_never_more_than_256_groups() -> None:
    assert len(manifest(n=1000).groups("train")) == 256


def test_rows_are_those_of_the_shards() -> None:
    assert manifest(n=4).rows("train") == 1 + 2 + 3 + 4


@pytest.mark.parametrize("split", ["test", "holdout"])
def test_a_split_without_rows_is_refused_with_those_that_have_some(split: str) -> None:
    with pytest.raises(DataError, match=rf"no '{split}' rows \(splits with rows: train, validation\)"):
        manifest().shards(split)


def test_fields_are_told_apart_by_kind() -> None:
    assert [field.name for field in manifest().categorical] == ["site", "ad"]
    assert [field.name for field in manifest().numeric] == ["age"]


@pytest.mark.parametrize("version", [None, 1, 3, "2"])
def test_an_unknown_version_is_refused_by_name(tmp_path: Path, version: Any) -> None:
    manifest(str(tmp_path)).save()
    path = str(tmp_path / "manifest.json")
    storage.write_json(path, {**storage.read_json(path, object), "format_version": version})

    with pytest.raises(
        DataError, match=rf"manifest\.json: format version {version!r} is unknown .*prepare .* again"
    ):
        Manifest.load(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("fields", [{"name": "x", "kind": "picture"}], "picture"),
        ("fields", [{"name": "x", "kind": "numeric", "colour": 1}], "colour"),
        ("fields", [7], ""),
        ("splits", {"train": [{"path": "p"}]}, "rows"),
        ("splits", [], ""),
        ("vocabulary", {"site": {"path": "p"}}, "rows"),
        ("label", None, "label"),
        ("vocabulary", None, "vocabulary"),
    ],
    ids=["kind", "attribute", "field", "shard", "splits", "vocabulary", "no label", "no vocabulary"],
)
def test_content_that_is_not_understood_is_refused_by_name(
    tmp_path: Path, key: str, value: Any, named: str
) -> None:
    manifest(str(tmp_path)).save()
    path = str(tmp_path / "manifest.json")
    content = storage.read_json(path, object)
    content[key] = value
    if value is None:
        del content[key]
    storage.write_json(path, content)

    with pytest.raises(DataError, match=rf"manifest\.json: .*{named}"):
        Manifest.load(str(tmp_path))


def test_a_folder_without_a_manifest_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a dataset directory \(no manifest\.json\)"):
        Manifest.load(str(tmp_path))


def test_a_manifest_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    manifest(str(tmp_path)).save()
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(DataError, match=r"manifest\.json: not valid JSON"):
        Manifest.load(str(tmp_path))


def test_an_unknown_kind_of_field_is_refused() -> None:
    with pytest.raises(ValueError, match="kind 'picture' of field 'x'"):
        Field(name="x", kind="picture")  # type: ignore[arg-type]
