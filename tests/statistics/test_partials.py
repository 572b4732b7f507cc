from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import digest_of
from afm_dist.statistics.partials import Partials, remove_partials


def some_moments(seed: int = 0) -> dict[str, Moments]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return {"layer": Moments(count=7, mean=rows.mean(0), scatter=rows.T @ rows)}


@pytest.fixture
def partials(tmp_path: Path) -> Partials:
    partials = Partials(parent=str(tmp_path), facts={"model": "abc", "groups": 4})
    partials.begin()
    return partials


def test_what_was_committed_is_loaded(partials: Partials) -> None:
    digest = partials.commit(2, some_moments())

    assert digest_of(partials.load(2)) == digest == digest_of(some_moments())
    assert partials.committed(4) == [2]
    assert partials.under_way()


def test_a_second_attempt_changes_nothing(partials: Partials) -> None:
    first = partials.commit(2, some_moments())

    assert partials.commit(2, some_moments()) == first
    assert partials.committed(4) == [2]


@pytest.mark.parametrize("group", [1, 3])
def test_a_partial_of_another_group_is_refused(partials: Partials, group: int) -> None:
    partials.commit(2, some_moments())
    Path(partials.location(2)).rename(partials.location(group))

    with pytest.raises(DataError, match="computed from other inputs"):
        partials.load(group)


def test_a_partial_of_another_pass_is_refused_and_lies_elsewhere(partials: Partials) -> None:
    other = replace(partials, facts={**partials.facts, "model": "abd"})
    other.begin()
    other.commit(2, some_moments())

    assert partials.committed(4) == []
    assert partials.beside() == [Path(other.folder).name]
    Path(other.location(2)).rename(partials.location(2))
    with pytest.raises(DataError, match="computed from other inputs"):
        partials.load(2)


def test_the_end_of_a_pass_leaves_nothing(partials: Partials, tmp_path: Path) -> None:
    partials.commit(0, some_moments())
    Path(partials.folder, ".group-00001.safetensors.0123.tmp").write_bytes(b"half")

    partials.end()

    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_commits_after_the_end_leaves_nothing(partials: Partials, tmp_path: Path) -> None:
    partials.commit(0, some_moments())
    partials.end()

    partials.commit(1, some_moments())

    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_commits_while_the_pass_ends_leaves_nothing(
    partials: Partials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = storage.remove

    def late_write_meanwhile(location: str) -> None:
        remove(location)
        if location.endswith("pass.json"):
            with monkeypatch.context() as patch:
                patch.setattr(storage, "remove", remove)
                partials.commit(3, some_moments())

    monkeypatch.setattr(storage, "remove", late_write_meanwhile)
    partials.end()

    assert list(tmp_path.iterdir()) == []


def test_the_partials_of_all_passes_are_removed_and_nothing_else(partials: Partials, tmp_path: Path) -> None:
    replace(partials, facts={}).begin()
    (tmp_path / "moments.safetensors").touch()

    remove_partials(str(tmp_path))

    assert [path.name for path in tmp_path.iterdir()] == ["moments.safetensors"]


def test_drivers_that_begin_and_end_the_same_pass_at_once_do_not_fail(
    partials: Partials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    failures: list[BaseException] = []

    def drive(*_: Any) -> None:
        try:
            for group in range(30):
                partials.begin()
                partials.commit(group, some_moments())
                partials.committed(30)
                partials.end()
        except BaseException as error:
            failures.append(error)

    drivers = [threading.Thread(target=drive) for _ in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()

    assert failures == []
    partials.end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "partials-of-mine/notes.txt",
        "partials-0123456789abcdef/notes.txt",
        "partials-0123456789abcdef/a/b.txt",
    ],
)
def test_folders_of_others_are_not_taken_for_partials(tmp_path: Path, name: str) -> None:
    storage.write_bytes(str(tmp_path / name), b"theirs")
    storage.write_bytes(str(tmp_path / "partials-fedcba9876543210" / "pass.json"), b"{}")

    remove_partials(str(tmp_path))

    assert storage.list_files(str(tmp_path)) == [name]
