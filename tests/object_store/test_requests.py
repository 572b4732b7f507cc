"""How often a store is asked: requests cost time, and money."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from afm_dist import storage
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from data_prep.sources import files
from data_prep.spool import open_arrow
from tests.object_store.faulty_proxy import FaultyProxy, Request
from tests.small_dataset import SPLITS, write_dataset


@pytest.fixture
def place(bucket: str) -> str:
    """A folder in a bucket that is known to be there."""
    storage.exists(f"{bucket}/x")
    return f"{bucket}/folder"


def methods(requests: list[Request]) -> str:
    return " ".join(request.method for request in requests)


def test_small_files_are_written_in_one_request_and_read_in_two(place: str, s3: FaultyProxy) -> None:
    with s3.recorded() as requests:
        storage.write_bytes(f"{place}/x", b"content")
    assert methods(requests) == "PUT"
    with s3.recorded() as requests:
        storage.read_bytes(f"{place}/x")
    assert methods(requests) == "HEAD GET"
    with s3.recorded() as requests:
        storage.exists(f"{place}/x")
    assert methods(requests) == "HEAD"
    with s3.recorded() as requests:
        storage.list_sizes(place)
    assert methods(requests) == "GET"


def test_a_shard_is_read_in_two_requests(place: str, s3: FaultyProxy, tmp_path: Path) -> None:
    local = write_dataset(tmp_path)
    for shard in local.shards("train"):
        storage.write_bytes(storage.join(place, shard.path), Path(tmp_path, shard.path).read_bytes())
    manifest = Manifest(**{**vars(local), "location": place})

    with s3.recorded() as requests:
        rows = sum(len(batch) for batch in read_batches(manifest, manifest.shards("train"), 100))

    assert rows == sum(SPLITS["train"])
    assert methods(requests) == " ".join(["HEAD GET"] * len(SPLITS["train"]))


def test_a_checkpoint_is_saved_and_loaded_in_few_requests(place: str, s3: FaultyProxy) -> None:
    model = torch.nn.Linear(300, 300)
    with s3.recorded() as requests:
        save_pretrained(model, place)
    assert [request.path for request in requests if request.method == "PUT"] == [
        f"/{place.removeprefix('s3://')}/{name}"
        for name in ("model.safetensors", "SHA256SUMS", "config.json")
    ]
    assert len(requests) <= 8
    with s3.recorded() as requests:
        loaded = from_pretrained(place, model=torch.nn.Linear(300, 300))
    assert torch.equal(loaded.weight, model.weight)
    # The checksums are read with the config and with the tensors.
    assert len(requests) <= 15


@pytest.mark.parametrize("packed", [False, True])
def test_a_log_is_read_in_pieces_of_megabytes(place: str, s3: FaultyProxy, packed: bool) -> None:
    text = b"".join(b"%d\t%d\n" % (i, i * i) for i in range(500_000))
    content = gzip.compress(text, 1) if packed else text
    storage.write_bytes(f"{place}/log", content)

    with s3.recorded() as requests:
        lines = (
            files.lines_of_compressed(f"{place}/log", "gzip")
            if packed
            else files.lines_of_range(f"{place}/log", 0, len(text))
        )
        assert b"".join(piece.text for piece in lines) == text

    assert len(requests) == 1 + -(-len(content) // (4 << 20))


def test_a_small_piece_of_a_spooled_file_does_not_take_it_all(place: str, s3: FaultyProxy) -> None:
    import pyarrow as pa

    batches = [pa.record_batch({"x": np.arange(200_000) + i}) for i in range(4)]
    with storage.open_write(f"{place}/spool") as sink, pa.ipc.new_file(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)

    with s3.recorded() as requests, open_arrow(f"{place}/spool") as reader:
        assert reader.get_batch(2).equals(batches[2])

    assert len(requests) <= 8
