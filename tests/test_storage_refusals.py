"""A disk that is full or read-only: one clear line, no temporary files, nothing lost."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from afm_dist import storage
from afm_dist.errors import StorageError
from tests.faults.small_disk import SmallDisk, small_disk

__all__ = ["small_disk"]

MANY = torch.arange(40_000)


def write_arrow(file: BinaryIO) -> None:
    table = pa.table({"x": MANY.numpy()})
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def write_parquet(file: BinaryIO) -> None:
    table = pa.table({"x": MANY.numpy()})
    with pq.ParquetWriter(file, table.schema, use_dictionary=False) as writer:
        writer.write_table(table, row_group_size=1000)


@pytest.mark.parametrize("write", [lambda file: file.write(bytes(100_000)), write_arrow, write_parquet])
def test_a_full_disk_is_named_and_leaves_what_was_there(small_disk: SmallDisk, write: Any) -> None:
    path = str(small_disk.path / "folder" / "file")
    storage.write_bytes(path, b"old")

    says = r"file: cannot be written \(No space left on device\)"
    with pytest.raises(StorageError, match=says) as raised, storage.open_write(path) as file:
        write(file)

    assert raised.value.errno == errno.ENOSPC
    assert storage.read_bytes(path) == b"old"
    assert storage.list_names(str(small_disk.path / "folder")) == ["file"]


def test_a_disk_too_small_for_a_file_of_tensors_is_named(small_disk: SmallDisk) -> None:
    path = str(small_disk.path / "folder" / "file")
    storage.write_bytes(path, b"old")

    with pytest.raises(StorageError, match="cannot be written"), storage.new_file(path) as new:
        safetensors.torch.save_file({"x": MANY}, new)

    assert storage.read_bytes(path) == b"old"
    assert storage.list_names(str(small_disk.path / "folder")) == ["file"]


def test_a_read_only_disk_is_named(small_disk: SmallDisk) -> None:
    path = str(small_disk.path / "file")
    storage.write_bytes(path, b"old")
    small_disk.remount("ro")
    folder = storage.join(str(small_disk.path), "new", "folder")

    for write in (
        lambda: storage.write_bytes(path, b"new"),
        lambda: storage.write_bytes(storage.join(folder, "file"), b"new"),
        lambda: storage.remove(path),
    ):
        with pytest.raises(StorageError, match=r"cannot be written \(Read-only file system\)"):
            write()

    assert storage.read_bytes(path) == b"old"
    assert storage.list_names(str(small_disk.path)) == ["file"]


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(
        StorageError, match=r"file/below: cannot be written \((Not a directory|File exists)\)"
    ):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"x")
