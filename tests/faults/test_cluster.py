"""The statistics pass on clusters: any number of nodes, a node or the driver killed on the way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from afm_dist.dataset.manifest import Manifest
from tests.faults.conftest import OBJECT_STORE_BYTES
from tests.faults.drivers import Driver
from tests.faults.passes import (
    GROUPS,
    Pass,
    Together,
    expected_digest,
    run_pass,
    run_pass_and_die,
    slowly,
    write_shards,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def expected(manifest: Manifest) -> str:
    return expected_digest(manifest)


def grow(cluster: Cluster, nodes: int) -> None:
    """Add nodes of one CPU until there are so many."""
    while len(cluster.worker_nodes) < nodes:
        cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_two_and_four_workers_give_the_same_bits_and_a_killed_node_changes_none(
    cluster: Cluster, driver: Driver, manifest: Manifest, expected: str, tmp_path: Path
) -> None:
    for nodes in (1, 2, 4):
        grow(cluster, nodes)
        folder = tmp_path / str(nodes)
        digest, _ = driver.run(run_pass, manifest, folder, Together(nodes, tmp_path / f"workers-{nodes}"))
        assert digest == expected
        assert len(list((tmp_path / f"workers-{nodes}").iterdir())) == nodes

    cluster.remove_node(next(iter(cluster.worker_nodes)))
    trial = Pass(manifest, tmp_path / "killed", slowly)
    running = driver.start(run_pass, manifest, tmp_path / "killed", slowly)
    wait_until(lambda: len(trial.partials()) >= 3)
    committed = set(trial.partials())
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    digest, events = running.result()

    assert digest == expected
    assert [e["reason"] for e in events if e["event"] == "task lost"] == ["the node died"]
    assert all(trial.computed()[group] == 1 for group in committed)
    # The one that was lost may have been lost before it noted its call.
    assert set(trial.computed()) == set(range(GROUPS))
    assert trial.computed().total() <= GROUPS + 1
    assert trial.left() == []


@pytest.fixture
def one_node(cluster: Cluster) -> Iterator[Cluster]:
    """So that a driver's worker is soon there."""
    grow(cluster, 1)
    while len(cluster.worker_nodes) > 1:
        cluster.remove_node(next(iter(cluster.worker_nodes)))
    return cluster


def test_drivers_killed_one_after_the_other_do_nothing_twice(
    one_node: Cluster, manifest: Manifest, expected: str, tmp_path: Path
) -> None:
    trial = Pass(manifest, tmp_path, slowly)
    done: set[int] = set()

    for point in (4, "before the sum", "while it deletes the partials"):
        before = trial.computed()
        driver = Driver(one_node.address)
        with pytest.raises(BrokenProcessPool):
            driver.run(run_pass_and_die, manifest, tmp_path, slowly, point)
        assert not done & set(trial.computed() - before)
        done = set(trial.partials())
        assert len(done) >= 4
    assert len(done) == GROUPS

    before = trial.computed()
    driver = Driver(one_node.address)
    digest, events = driver.run(run_pass, manifest, tmp_path, slowly)
    driver.close()

    assert digest == expected
    assert trial.computed() == before
    assert [event["event"] for event in events] == ["groups found committed"]
    assert trial.left() == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_driver_killed_at_any_time_does_nothing_twice(
    cluster: Cluster, manifest: Manifest, expected: str, tmp_path: Path
) -> None:
    grow(cluster, 2)
    times = random.Random(0)
    kept: list[int] = []
    for i in range(20):
        folder = tmp_path / str(i)
        trial = Pass(manifest, folder, slowly)
        driver = Driver(cluster.address)
        driver.run(time.sleep, 0)  # connected
        running = driver.start(run_pass, manifest, folder, slowly)
        # The first group is soon there once workers have loaded torch.
        after = times.uniform(0, 2 * GROUPS * 0.2)
        if times.random() < 0.75:
            wait_until(lambda trial=trial: trial.log.exists())
            after /= 4
        time.sleep(after)
        driver.kill()
        killed = isinstance(running.exception(), BrokenProcessPool)
        time.sleep(1)  # what its workers had in hand may still be committed
        done, before = set(trial.partials()), trial.computed()
        if killed:
            kept.append(len(done))

        driver = Driver(cluster.address)
        digest, events = driver.run(run_pass, manifest, folder, slowly)
        driver.close()

        assert digest == expected
        assert not done & set(trial.computed() - before)
        found = [event["groups"] for event in events if event["event"] == "groups found committed"]
        assert found == ([sorted(done)] if done else [])
        assert trial.left() == []
    print(f"{len(kept)} of 20 drivers were killed on the way, with {sorted(kept)} of {GROUPS} groups kept")
    assert len(kept) >= 15
