"""Paths that were read from a file stay below its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afm_dist import storage
from afm_dist.errors import DataError

REFUSED: tuple[Any, ...] = (
    "../x",
    "../../x",
    "a/../../x",
    "a/..",
    "..",
    ".",
    "./x",
    "a/./x",
    "/etc/passwd",
    "//host/share/x",
    "a//x",
    "a/",
    "",
    "C:/x",
    "c:x",
    "C:\\x",
    "..\\x",
    "a\\..\\..\\x",
    "\\\\host\\share",
    "a\0b",
    "\udcff",
    "file:///etc/passwd",
    "s3://bucket/x",
    None,
    3,
    ["x"],
    {"path": "x"},
)
ACCEPTED = ("x", "a/x", "train/part-00000.parquet", "vocabulary/C:x.parquet", "...", "a/..b", "ü/%2e%2e", "~")


@pytest.mark.parametrize("path", REFUSED, ids=ascii)
def test_a_path_that_is_not_plainly_inside_is_refused_by_name(tmp_path: Path, path: Any) -> None:
    for folder in (str(tmp_path), "s3://bucket/folder", f"file://{tmp_path}"):
        with pytest.raises(DataError, match=r"manifest\.json: damaged") as caught:
            storage.check_inside(folder, ["good", path], source="manifest.json")
        assert repr(path) in str(caught.value)


def test_plain_paths_are_accepted_whether_they_are_there_or_not(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a" / "x"), b"")

    storage.check_inside(str(tmp_path), ACCEPTED, source="manifest.json")


@given(st.text(alphabet=[*"./\\ab:~%", "\0"], max_size=12))
def test_what_is_accepted_lies_inside(path: str) -> None:
    if storage.fault_of(path) is None:
        place = os.path.normpath(storage.join("/folder/of/it", path))
        assert place.startswith("/folder/of/it/")
        assert os.path.relpath(place, "/folder/of/it") == path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("outside/x", "data/real/x"):
        storage.write_bytes(str(tmp_path / name), name.encode())
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("link", "target", "path"),
    [
        ("x", "../outside/x", "x"),
        ("x", "../outside/not-there", "x"),
        ("away", "../outside", "away/x"),
        ("away", "../outside", "away/not-there"),
        ("away", "..", "away/data/real/../x"[:9]),
        ("circle", "circle", "circle"),
        ("circle", "circle", "circle/x"),
    ],
)
def test_a_link_that_leads_out_is_refused(folder: Path, link: str, target: str, path: str) -> None:
    (folder / link).symlink_to(target)

    for location in (str(folder), f"file://{folder}"):
        with pytest.raises(DataError, match=rf"names the path '{path}', .* by way of a link"):
            storage.check_inside(location, ["real/x", path], source="manifest.json")


def test_links_inside_a_folder_and_to_the_folder_itself_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "alias").symlink_to("real")
    (folder / "x").symlink_to("real/x")
    (tmp_path / "link-to-data").symlink_to("data")

    storage.check_inside(str(tmp_path / "link-to-data"), ["alias/x", "x", "real/x"], source="manifest.json")
