"""Checkpoint, rows and scores on an object store: the bytes of a local disk."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from afm_dist import storage
from tests.data_prep.scoring.conftest import HEADER, clicks, write_csv
from tests.data_prep.scoring.models import Trained


def test_scores_on_an_object_store_are_those_on_a_disk(trained: Trained, bucket: str, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", HEADER[:3], [*(row[:3] for row in clicks(60)), ["u1"]])
    trained.predict(tmp_path / "scores.parquet", rows, keep=("user",), max_bad_rows=0.1)
    for path in Path(trained.checkpoint).rglob("*.*"):
        storage.write_bytes(
            storage.join(bucket, "checkpoint", *path.relative_to(trained.checkpoint).parts), path.read_bytes()
        )
    storage.write_bytes(f"{bucket}/rows.csv", rows.read_bytes())
    remote = Trained(trained.log, trained.data, f"{bucket}/checkpoint")

    remote.predict(f"{bucket}/scores.parquet", f"{bucket}/rows.csv", keep=("user",), max_bad_rows=0.1)

    assert storage.read_bytes(f"{bucket}/scores.parquet") == (tmp_path / "scores.parquet").read_bytes()
    assert pq.read_metadata(tmp_path / "scores.parquet").num_rows == 61
    assert storage.list_names(bucket) == [
        "checkpoint",
        "rows.csv",
        "scores.parquet",
        "scores.parquet.rejected",
    ]
