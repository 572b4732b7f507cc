"""Reading and writing mean the same on a local disk and on object stores."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import pytest

from afm_dist import storage
from afm_dist.errors import DataError
from tests.object_store.faulty_proxy import FaultyProxy
from tests.object_store.servers import put_many

PART_BYTES = 10 << 20


@pytest.fixture(params=["path", "file", "s3", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of each kind that does not exist yet."""
    if request.param in ("s3", "gs"):
        return storage.join(
            request.getfixturevalue({"s3": "bucket", "gs": "gs_bucket"}[request.param]), "a b"
        )
    return f"file://{tmp_path}/a%20b" if request.param == "file" else str(tmp_path / "a b")


def test_what_was_written_is_read_listed_and_removed(folder: str) -> None:
    below = storage.join(folder, "below")
    storage.write_bytes(storage.join(below, "x"), b"\x00content")
    storage.write_json(storage.join(folder, "a.json"), {"x": [1, 2]})
    storage.write_bytes(storage.join(folder, "log"), b"first\nsecond\n")

    assert storage.read_bytes(storage.join(below, "x")) == b"\x00content"
    assert storage.read_json(storage.join(folder, "a.json"), object) == {"x": [1, 2]}
    assert storage.list_names(folder) == ["a.json", "below", "log"]
    assert storage.list_sizes(folder) == {"a.json": 30, "log": 13}
    assert storage.size(storage.join(folder, "log")) == 13
    assert storage.is_folder(folder)
    assert storage.is_file(storage.join(folder, "log"))
    assert storage.file_sha256(storage.join(folder, "log")) == hashlib.sha256(b"first\nsecond\n").hexdigest()

    storage.remove(storage.join(folder, "log"))
    assert storage.list_names(folder) == ["a.json", "below"]
    storage.remove(folder)
    storage.remove(folder)
    assert not storage.exists(folder)
    assert storage.list_names(folder) == []


def test_digests_of_what_is_written_are_recorded_and_compared(folder: str, tmp_path: Path) -> None:
    def at(path: str) -> str:
        return storage.join(folder, *path.split("/"))

    with storage.recording_digests() as digests:
        storage.write_bytes(at("sub folder/a"), b"first")
        with storage.open_write(at("b")) as file:
            file.write(b"se")
            file.write(memoryview(b"cond"))
        with storage.new_file(at("c")) as path:
            path.write_bytes(b"third")
        storage.copy_file(at("c"), at("d"))
        storage.write_bytes(at("gone"), b"fourth")
        storage.remove(at("gone"))
    storage.write_bytes(at("late"), b"not recorded")

    contents = {"sub folder/a": b"first", "b": b"second", "c": b"third", "d": b"third"}
    found = {storage.relative(location, folder): digest for location, digest in digests.items()}
    assert found == {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    assert storage.list_files(folder) == sorted([*contents, "late"])
    storage.remove(at("late"))
    assert storage.of_tree(folder).sha256 == found

    sums = storage.Checksums(folder=folder, sha256=found)
    sums.check_all(threads=2)
    storage.write_bytes(at("b"), b"altered")
    with pytest.raises(DataError, match=r"b: damaged .truncated or altered"):
        sums.check_all()
    with pytest.raises(DataError, match=r"b: damaged .truncated or altered"):
        sums.read("b")


def test_a_missing_file_is_named(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "present"), b"")
    for read in (
        storage.read_bytes,
        partial(storage.read_json, kind=object),
        storage.size,
        storage.file_sha256,
        storage.open_read,
    ):
        with pytest.raises(DataError, match="absent: no such file"):
            read(storage.join(folder, "absent"))


@pytest.mark.parametrize("name", ["a b", "100%", "a%20b", "ünï", "a+b&c=d", "a?b#c", "~(x)'!"])
def test_any_name_is_a_name(folder: str, name: str) -> None:
    storage.write_bytes(storage.join(folder, name), b"content")
    storage.copy(folder, storage.join(folder, "copy of", name))

    assert storage.list_names(folder) == sorted([name, "copy of"])
    assert storage.read_bytes(storage.join(folder, "copy of", name, name)) == b"content"
    storage.remove(storage.join(folder, "copy of", name))
    storage.remove(storage.join(folder, name))
    assert not storage.exists(storage.join(folder, name))


def test_slashes_at_the_end_change_nothing(folder: str) -> None:
    storage.write_bytes(storage.join(folder + "/", "x"), b"content")

    assert storage.list_names(folder + "/") == ["x"]
    assert storage.is_folder(folder + "/")
    assert storage.absolute(folder + "//") == folder
    storage.remove(folder + "/")
    assert not storage.exists(folder)


def test_a_write_that_breaks_off_leaves_the_old_content(folder: str) -> None:
    path = storage.join(folder, "file")
    storage.write_bytes(path, b"old")

    # On an object store the first part is there already when the second one breaks off.
    with pytest.raises(KeyboardInterrupt), storage.open_write(path) as file:
        file.write(bytes(PART_BYTES))
        file.write(b"more")
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), storage.open_write(path) as file:
        raise RuntimeError

    assert storage.read_bytes(path) == b"old"
    assert storage.list_names(folder) == ["file"]


def test_a_large_file_is_read_as_it_was_written(folder: str, tmp_path: Path) -> None:
    content = hashlib.shake_256(b"seed").digest(PART_BYTES + 12_345)
    path = storage.join(folder, "large")
    with storage.new_file(path) as local:
        local.write_bytes(content)

    assert storage.size(path) == len(content)
    assert storage.file_sha256(path) == hashlib.sha256(content).hexdigest()
    with storage.local_copy(path) as local:
        assert local.read_bytes() == content
    with storage.open_read(path, 1 << 16) as file:
        file.seek(PART_BYTES - 3)
        assert file.read(100_000) == content[PART_BYTES - 3 :]


def test_the_root_of_a_bucket_is_a_folder(bucket: str) -> None:
    for root in (bucket, f"{bucket}/"):
        storage.write_bytes(storage.join(root, "x", "y"), b"content")
        assert storage.list_names(root) == ["x"]
        assert storage.is_folder(root)
        storage.remove(storage.join(root, "x"))
        assert storage.list_names(root) == []


def test_a_folder_of_more_than_a_thousand_files_is_listed_and_removed_whole(
    bucket: str, s3: FaultyProxy
) -> None:
    names = [f"{i:04d}" for i in range(1_030)]
    put_many(bucket, [f"many/{name}" for name in names])
    assert not storage.exists(f"{bucket}/absent")

    with s3.recorded() as requests:
        assert storage.list_names(f"{bucket}/many") == names
    assert [request.method for request in requests] == ["GET", "GET"]
    storage.remove(f"{bucket}/many")
    assert storage.list_names(f"{bucket}/many") == []
