"""Faults of workers and of storage during a statistics pass: the same bits, nothing done twice."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import StageError
from afm_dist.runtime import tasks
from afm_dist.statistics import ray_pass
from afm_dist.statistics.moments_file import digest_of, load_moments, save_moments
from tests.faults.passes import GROUPS, DieOnce, Pass, Straggler, expected_digest, write_shards
from tests.faults.small_disk import SmallDisk, small_disk

__all__ = ["small_disk"]

pytestmark = pytest.mark.ray

ONCE = Counter(range(GROUPS))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def expected(manifest: Manifest) -> str:
    return expected_digest(manifest)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, local_ray: None) -> None:
    monkeypatch.setattr(tasks, "PAUSE_S", 0.05)


def test_an_undisturbed_pass_gives_the_bits_of_a_plain_loop(
    manifest: Manifest, expected: str, tmp_path: Path
) -> None:
    trial = Pass(manifest, tmp_path)

    assert trial.digest() == expected
    assert trial.computed() == ONCE
    assert trial.left() == []


@pytest.mark.parametrize(
    ("point", "again"),
    [("before the write", 1), ("after the write, before the rename", 1), ("after the rename", 0)],
)
def test_a_worker_killed_around_its_commit_changes_no_bit(
    manifest: Manifest, expected: str, tmp_path: Path, point: str, again: int
) -> None:
    trial = Pass(manifest, tmp_path, DieOnce(5, point, tmp_path / "killed"))

    assert trial.digest() == expected

    assert (tmp_path / "killed").exists()
    assert trial.computed()[5] == 1 + again
    lost = {event["task"]: event["reason"] for event in trial.happened("task lost")}
    assert lost["group 5"] == "the worker died"
    assert trial.left() == []


def test_a_worker_killed_after_its_receipt_takes_no_result_with_it(
    manifest: Manifest, expected: str, tmp_path: Path
) -> None:
    trial = Pass(manifest, tmp_path)

    def kill_the_worker(event: dict[str, Any]) -> None:
        if event["event"] == "group committed" and event["group"] == 5:
            os.kill(trial.worker_of(5), signal.SIGKILL)

    trial.heard = kill_the_worker

    assert trial.digest() == expected
    assert trial.computed()[5] == 1
    assert trial.left() == []


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_in_which_groups_are_done_changes_no_bit(
    manifest: Manifest, expected: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []

    def shuffled(submit: Any, items: Any, **options: Any) -> None:
        order.extend(random.Random(seed).sample(items, len(items)))
        tasks.run_tasks(submit, order, **options)

    monkeypatch.setattr(ray_pass, "run_tasks", shuffled)

    assert Pass(manifest, tmp_path).digest() == expected
    assert sorted(order) == list(range(GROUPS)) != order


def test_another_number_of_groups_is_another_order_of_summation(manifest: Manifest, tmp_path: Path) -> None:
    """The design ties the bits to the grouping, and the grouping to the manifest alone.

    ``max_groups`` is the one option that changes it: each count has its own bits, those of the plain
    loop over the same groups, and they agree within the error bound.
    """
    digests, covariances = set(), []
    for max_groups in (GROUPS, 5, 1):
        trial = Pass(manifest, tmp_path / str(max_groups))
        moments = trial.moments(max_groups=max_groups)
        assert digest_of(moments) == expected_digest(manifest, max_groups)
        digests.add(digest_of(moments))
        covariances.append(moments["mlp.3"].covariance)

    assert len(digests) == 3
    for covariance in covariances:
        assert float((covariance - covariances[0]).norm() / covariances[0].norm()) <= 1e-6


def test_an_attempt_that_commits_after_another_one_changes_nothing(
    manifest: Manifest, expected: str, tmp_path: Path
) -> None:
    straggler = Straggler(5, tmp_path)
    trial = Pass(manifest, tmp_path, straggler)

    def commit_again(event: dict[str, Any]) -> None:
        if event["event"] == "group committed" and event["group"] == 5:
            straggler.let_go()

    trial.heard = commit_again

    assert trial.digest() == expected
    assert trial.computed()[5] == 2
    assert trial.left() == []


def test_an_attempt_that_commits_after_the_end_leaves_nothing(
    manifest: Manifest, expected: str, tmp_path: Path
) -> None:
    straggler = Straggler(5, tmp_path)
    trial = Pass(manifest, tmp_path, straggler)

    assert trial.digest() == expected
    assert trial.computed()[5] == 2
    straggler.let_go()

    assert trial.left() == []


def test_two_drivers_on_one_folder_get_the_same_bits(
    manifest: Manifest, expected: str, tmp_path: Path
) -> None:
    trials = [Pass(manifest, tmp_path), Pass(manifest, tmp_path)]

    with ThreadPoolExecutor() as drivers:
        digests = list(drivers.map(Pass.digest, trials))

    assert digests == [expected, expected]
    assert trials[0].left() == []


def flip_a_bit(partials: dict[int, Path]) -> None:
    content = bytearray(partials[5].read_bytes())
    content[-9] ^= 1
    partials[5].write_bytes(content)


def truncate(partials: dict[int, Path]) -> None:
    partials[5].write_bytes(partials[5].read_bytes()[:-1])


def empty(partials: dict[int, Path]) -> None:
    partials[5].write_bytes(b"")


def take_another_group_s(partials: dict[int, Path]) -> None:
    partials[5].write_bytes(partials[4].read_bytes())


def take_another_pass_s(partials: dict[int, Path]) -> None:
    moments = load_moments(str(partials[5]))
    save_moments(str(partials[5]), moments, fingerprint="another")


def delete(partials: dict[int, Path]) -> None:
    partials[5].unlink()


DAMAGES = [flip_a_bit, truncate, empty, take_another_group_s, take_another_pass_s, delete]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_partial_that_is_damaged_before_it_is_summed_is_made_again(
    manifest: Manifest, expected: str, tmp_path: Path, damage: Callable[[dict[int, Path]], None]
) -> None:
    trial = Pass(manifest, tmp_path)

    def damage_the_last(event: dict[str, Any]) -> None:
        if event["event"] == "group committed" and len(trial.happened("group committed")) == GROUPS:
            damage(trial.partials())

    trial.heard = damage_the_last

    assert trial.digest() == expected
    assert trial.computed() == ONCE + Counter([5])
    assert [event["group"] for event in trial.happened("damaged partial")] == [5]
    assert trial.left() == []


def test_a_partial_that_is_damaged_again_and_again_ends_in_a_clear_error(
    manifest: Manifest, expected: str, tmp_path: Path
) -> None:
    trial = Pass(manifest, tmp_path)

    def damage_it(event: dict[str, Any]) -> None:
        if event["event"] == "group committed" and event["group"] == 5:
            flip_a_bit(trial.partials())

    trial.heard = damage_it
    with pytest.raises(StageError, match=r"group-00005\.safetensors: checksum .*3 times again.*failing disk"):
        trial.digest()
    trial.heard = lambda event: None

    assert trial.digest() == expected


def test_a_full_disk_is_told_and_the_next_run_goes_on(
    manifest: Manifest, expected: str, tmp_path: Path, small_disk: SmallDisk
) -> None:
    trial = Pass(manifest, tmp_path, stage=small_disk.path)

    with pytest.raises(OSError, match="No space left on device") as caught:
        trial.digest()
    assert small_disk.path.name in str(caught.value)
    done = set(trial.partials())
    assert 0 < len(done) < GROUPS
    before = trial.computed()
    small_disk.remount("size=1m")

    assert trial.digest() == expected
    assert not done & set(trial.computed() - before)
    assert trial.left() == []


def test_a_disk_that_becomes_read_only_is_told_and_the_next_run_goes_on(
    manifest: Manifest, expected: str, tmp_path: Path, small_disk: SmallDisk
) -> None:
    small_disk.remount("size=1m")
    trial = Pass(manifest, tmp_path, stage=small_disk.path)

    def make_read_only(event: dict[str, Any]) -> None:
        if len(trial.happened("group committed")) == 3:
            small_disk.remount("ro")

    trial.heard = make_read_only
    with pytest.raises(OSError, match="Read-only file system"):
        trial.digest()
    with pytest.raises(OSError, match="Read-only file system"):
        trial.digest()
    done = set(trial.partials())
    before = trial.computed()
    small_disk.remount("rw")
    trial.heard = lambda event: None

    assert trial.digest() == expected
    assert not done & set(trial.computed() - before)
    assert trial.left() == []
