"""Preparing from and to an object store gives the dataset of a local disk."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest

from afm_dist import storage
from afm_dist.errors import OptionError, StorageError
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.sources import files
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.object_store.faulty_proxy import DENIED, FaultyProxy, Request

PROTOCOL = Protocol(seed=2, rows_per_shard=120, max_bad_rows=0.1)
NAMES = ["a b%1.csv", "ü day_2.csv.gz", "ü day_10.csv"]


def write_log(folder: Path, *, parquet: bool) -> None:
    """Three files, one of them packed, with malformed rows; or the first one as Parquet."""
    folder.mkdir()
    for number, name in enumerate(NAMES):
        rows = [f"{i % 4 == 0:d},a{i % 37},s {i * i % 11},{i / 8}" for i in range(number, 200)]
        text = ("click,ad,site nr,price\n" + "\n".join(rows) + "\nbad\n").encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    if parquet:
        text = (folder / NAMES[2]).read_text().replace("\nbad\n", "\n")
        (folder / "x.csv").write_text(text)
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(folder / "x.csv"), folder / "x y.parquet")
        for path in folder.glob("*.csv*"):
            path.unlink()


def upload(folder: Path, location: str) -> None:
    for path in folder.iterdir():
        storage.write_bytes(storage.join(location, path.name), path.read_bytes())


def source(folder: str) -> TabularSource:
    return TabularSource(files.expand([folder]), ColumnOptions(label="click"), block_bytes=4_000)


@pytest.mark.parametrize(("kind", "parquet"), [("s3", False), ("s3", True), ("gs", False), ("file", False)])
def test_the_dataset_is_the_same(
    here: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path, kind: str, parquet: bool
) -> None:
    write_log(tmp_path / "log", parquet=parquet)
    local = prepare(source(str(tmp_path / "log")), str(tmp_path / "data"), PROTOCOL)
    if kind == "file":
        (tmp_path / "a store").mkdir()
        root = f"file://{tmp_path}/a%20store"
        log = f"file://{tmp_path}/log"
    else:
        # The dataset takes the root of a bucket, beside the raw log.
        root = request.getfixturevalue("bucket" if kind == "s3" else "gs_bucket")
        log = f"{root}/raw"
        upload(tmp_path / "log", log)

    remote = prepare(source(f"{log}/"), f"{root}/", PROTOCOL)

    assert remote.fingerprint() == local.fingerprint()
    for folder in ("vocabulary", "train"):
        of_local = storage.list_sizes(str(tmp_path / "data" / folder))
        assert storage.list_sizes(storage.join(root, folder)) == of_local
    # What is in there names the raw file with its place.
    rejected = storage.list_names(storage.join(root, "rejected"))
    assert rejected == storage.list_names(str(tmp_path / "data" / "rejected"))
    assert {".work", "spool"}.isdisjoint(storage.list_names(root))
    again = prepare(source(log), root, PROTOCOL)
    assert again.fingerprint() == local.fingerprint()


def test_what_an_object_store_refuses_stops_it_by_name(
    here: pytest.MonkeyPatch, bucket: str, s3: FaultyProxy, tmp_path: Path
) -> None:
    write_log(tmp_path / "log", parquet=False)
    upload(tmp_path / "log", f"{bucket}/log")

    def shards_are_denied(number: int, request: Request) -> object:
        return DENIED if request.method == "PUT" and "/train/" in request.path else None

    with s3.failing(shards_are_denied), pytest.raises(StorageError, match=r"train/part.*permission denied"):
        prepare(source(f"{bucket}/log"), f"{bucket}/data", PROTOCOL)
    assert not storage.exists(f"{bucket}/data/manifest.json")

    prepare(source(f"{bucket}/log"), f"{bucket}/data", PROTOCOL)
    with pytest.raises(OptionError, match=r"holds the input .*/log/.*; name another folder"):
        prepare(source(f"{bucket}/log"), bucket, PROTOCOL)
