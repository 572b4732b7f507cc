"""What is there instead of a file: pipes, devices, sockets, loops of links, names that are no text."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_dist import storage
from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.files import CONFIG, TENSORS
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.errors import AfmError, DataError, OptionError, StorageError

pytestmark = pytest.mark.timeout(20)


def make_socket(path: Path) -> None:
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path))
    bound.close()


SPECIAL: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": make_socket,
}
READERS: list[Callable[[str], Any]] = [
    storage.read_bytes,
    storage.open_read,
    storage.file_sha256,
    lambda path: storage.read_json(path, dict),
    lambda path: storage.local_copy(path).__enter__(),
    lambda path: storage.copy_file(path, f"{path}.copy"),
]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_refused_instead_of_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, read: Callable[[str], Any]
) -> None:
    # The address of a socket is short.
    monkeypatch.chdir(tmp_path)
    SPECIAL[kind](Path("x"))

    with pytest.raises(DataError, match=rf"^x: a {kind}"):
        read("x")


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_checkpoint_with_one_is_refused_by_name(tmp_path: Path, kind: str, name: str) -> None:
    save_pretrained(torch.nn.Sequential(torch.nn.Linear(2, 1)), str(tmp_path / "checkpoint"))
    path = tmp_path / "checkpoint" / name
    path.unlink()
    SPECIAL[kind](path)

    with pytest.raises(DataError, match=rf"{name}"):
        from_pretrained(str(tmp_path / "checkpoint"), model=torch.nn.Sequential(torch.nn.Linear(2, 1)))


def test_a_loop_of_links_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")

    for read in (storage.read_bytes, storage.list_names, storage.absolute, load_config):
        with pytest.raises(AfmError, match=rf"{tmp_path}/a"):
            read(str(tmp_path / "a"))


@pytest.mark.parametrize("name", ["a\0b", "a\udcff", "file:///a\udcff", "~nobody-of-this-name/x"])
def test_a_text_that_cannot_name_a_file_is_refused_as_an_option(name: str) -> None:
    for read in (storage.absolute, lambda path: storage.read_bytes(storage.absolute(path)), storage.exists):
        if name.startswith("~") and read is storage.exists:
            continue
        with pytest.raises(OptionError):
            read(name)


def test_hdfs_without_java_says_what_it_takes() -> None:
    try:
        storage.exists("hdfs://namenode/x")
    except StorageError as error:
        assert "Java" in str(error) and "\n" not in str(error)
    else:
        pytest.skip("there is an HDFS")
