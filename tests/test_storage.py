from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from afm_dist import storage
from afm_dist.errors import DataError, OptionError


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "folders" / "file")

    storage.write_bytes(path, b"\x00content")

    assert storage.read_bytes(path) == b"\x00content"
    assert storage.size(path) == 8
    assert storage.exists(path)


@pytest.mark.parametrize("step", ["rename", "flush"])
def test_an_interrupted_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    storage.write_bytes(str(path), b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "replace") if step == "rename" else (os, "fsync")), interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes(str(path), b"new content")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_final_name_appears_only_with_the_whole_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    seen: list[bool] = []
    fsync = os.fsync

    def watching(descriptor: int) -> None:
        seen.append(path.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watching)
    storage.write_bytes(str(path), b"content")

    assert seen == [False]
    assert path.exists()


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".group-1.safetensors.0123.tmp", "kept.tmp", ".hidden", "group-1.safetensors"):
        (tmp_path / name).write_bytes(b"x")

    storage.remove_temporaries(str(tmp_path))

    assert storage.list_names(str(tmp_path)) == [".hidden", "group-1.safetensors", "kept.tmp"]


@pytest.mark.parametrize(
    ("written", "folder"),
    [("plain", "plain"), ("a b", "a b"), ("a%20b", "a b"), ("ünï", "ünï"), ("%C3%BCn", "ün")],
)
def test_a_file_uri_is_the_local_file(tmp_path: Path, written: str, folder: str) -> None:
    uri = f"file://{tmp_path}/{written}"

    storage.write_bytes(storage.join(uri, "file"), b"content")

    assert (tmp_path / folder / "file").read_bytes() == b"content"
    assert storage.read_bytes(storage.join(uri, "file")) == b"content"
    assert storage.list_names(uri) == ["file"]
    assert storage.size(storage.join(uri, "file")) == 7
    assert storage.file_sha256(storage.join(uri, "file")) == hashlib.sha256(b"content").hexdigest()
    storage.remove(uri)
    assert not storage.exists(uri)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)

    with pytest.raises(DataError, match=r"x\.json: not valid JSON"):
        storage.read_json(str(tmp_path / "x.json"), object)


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(str(tmp_path / "x.json"), {"auc": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_a_fingerprint_ignores_the_order_of_keys_and_sees_values() -> None:
    assert storage.fingerprint({"a": 1, "b": [2, 3]}) == storage.fingerprint({"b": [2, 3], "a": 1})
    assert storage.fingerprint({"a": 1, "b": [2, 3]}) != storage.fingerprint({"a": 1, "b": [3, 2]})


def test_relative_locations_become_absolute_and_uris_stay() -> None:
    assert storage.absolute("data") == str(Path.cwd() / "data")
    assert storage.absolute("s3://bucket/data") == "s3://bucket/data"
    assert storage.join("s3://bucket/data/", "train", "part") == "s3://bucket/data/train/part"


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "data")

    storage.remove(str(tmp_path / "link"))

    assert (tmp_path / "data" / "file").exists()
    assert not (tmp_path / "link").exists()


def test_copying_a_folder_copies_its_files(tmp_path: Path) -> None:
    (tmp_path / "from" / "below").mkdir(parents=True)
    (tmp_path / "from" / "a").write_bytes(b"1")

    storage.copy(str(tmp_path / "from"), str(tmp_path / "to"))

    assert storage.list_names(str(tmp_path / "to")) == ["a"]


def test_an_unknown_file_system_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="s4://bucket/x: Unrecognized filesystem"):
        storage.exists("s4://bucket/x")
