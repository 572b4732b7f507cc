"""Trainings whose workers and nodes die: they see the same data and end with the same weights."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from afm_dist.errors import DataError
from afm_dist.training.fit import WorkerGroup
from tests.faults.conftest import OBJECT_STORE_BYTES
from tests.faults.drivers import Driver
from tests.faults.trainings import STEPS, Bench, Kill, Trained, read_events, train_with
from tests.training.exchange.error_feedback import SignsWithErrorFeedback

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

RESULTS = ("checkpoint/SHA256SUMS", "checkpoint/config.json", "checkpoint/model.safetensors", "history.json")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def check_same(disturbed: Trained, undisturbed: Trained, name: str = "model", other: str = "model") -> None:
    """The same data in every step that counts, the same evaluations, the same bytes."""
    # What was done twice was done twice alike.
    seen = {(each.step, each.rank, each.batch) for each in disturbed.seen if each.candidate == name}
    assert len(seen) == len(disturbed.batches(name))
    assert disturbed.batches(name) == undisturbed.batches(other)
    assert disturbed.histories[name] == undisturbed.histories[other]
    assert disturbed.weights(name) == undisturbed.weights(other)


def test_workers_killed_at_any_point_of_a_checkpoint_leave_the_result_as_it_would_have_been(
    bench: Bench, local_ray: None
) -> None:
    trained = bench.train(
        Kill(rank=1, moment="before the step", step=6, registered=4),
        Kill(rank=0, moment="checkpoint written", step=8),
        Kill(rank=0, moment="checkpoint reported", step=12, registered=12),
        group=WorkerGroup(workers=2),
    )

    # From what was registered; what was written at step 8 was not.
    starts = [start["step"] for start in trained.happened("training started")]
    assert starts == [0, 4, 4, 12]
    for attempt, start in enumerate(starts, 1):
        for rank in (0, 1):
            steps = trained.steps(attempt, rank)
            assert steps == list(range(start, start + len(steps)))
    assert trained.steps(1, rank=1)[-1] == 5
    assert [trained.steps(attempt)[-1] for attempt in (2, 3, 4)] == [7, 11, STEPS - 1]
    assert trained.batches().keys() == {(step, rank) for step in range(STEPS) for rank in (0, 1)}
    check_same(trained, bench.train(group=WorkerGroup(workers=2)))
    assert trained.left() == {f"model/{result}" for result in RESULTS}
    reasons = [lost["reason"] for lost in trained.happened("training lost")]
    assert len(reasons) == 3
    assert "worker 1 of the training: its process" in reasons[0]
    assert "worker 0 of the training: its process" in reasons[1]


@pytest.mark.slow
def test_a_killed_worker_of_an_exchange_with_a_state_leaves_the_result_as_it_would_have_been(
    bench: Bench, local_ray: None
) -> None:
    group = WorkerGroup(workers=2, exchange=SignsWithErrorFeedback())
    trained = bench.train(
        Kill(rank=1, moment="before the step", step=6, registered=4),
        group=group,
    )

    assert [start["step"] for start in trained.happened("training started")] == [0, 4]
    check_same(trained, bench.train(group=group))
    assert trained.histories["model"].bytes_sent > 0
    assert trained.left() == {f"model/{result}" for result in RESULTS}


@pytest.mark.slow
def test_a_worker_killed_right_after_reporting_goes_on_from_what_was_registered_until_then(
    bench: Bench, local_ray: None
) -> None:
    # Without evaluations between them, a checkpoint after every step.
    trained = bench.train(
        Kill(moment="checkpoint reported", step=6, candidate="first"),
        Kill(moment="before the step", step=0, candidate="second"),
        names=("first", "second"),
        group=WorkerGroup(checkpoint_minutes=0),
    )

    starts = [(start["candidate"], start["step"]) for start in trained.happened("training started")]
    # What was reported may not have been registered yet; it goes on from what was.
    assert [candidate for candidate, _ in starts] == ["first", "first", "second"]
    assert starts[0][1] == starts[2][1] == 0 < starts[1][1] <= 6
    assert trained.steps(1, candidate="first") == list(range(6))
    assert trained.steps(2, candidate="first") == list(range(starts[1][1], STEPS))
    assert trained.steps(3, candidate="second") == list(range(STEPS))
    check_same(trained, trained, "first", "second")
    assert trained.left() == {f"{name}/{result}" for name in ("first", "second") for result in RESULTS}


def test_what_a_worker_finds_wrong_with_its_data_is_raised_at_once(bench: Bench, local_ray: None) -> None:
    damaged = Bench(bench.place())
    shard = Path(damaged.manifest.location, damaged.manifest.shards("train")[3].path)
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)

    with pytest.raises(DataError, match=r"part-00003.parquet: .*"):
        damaged.train(group=WorkerGroup(workers=2))

    heard = [event["event"] for event in read_events(damaged.folder / "training-1")]
    assert heard.count("training started") == 1
    assert "training lost" not in heard


# On clusters -------------------------------------------------------------------------------------


def grow(cluster: Cluster, nodes: int) -> None:
    """Add nodes of one CPU until there are so many."""
    while len(cluster.worker_nodes) < nodes:
        cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)


def kill_node_of(cluster: Cluster, notes: Path, rank: int) -> None:
    """Kill the node of a worker, when the worker hangs where it shall."""
    while not (notes / "killed-0").exists():
        time.sleep(0.05)
    node_id = (notes / f"node-{rank}").read_text()
    node = next(node for node in cluster.worker_nodes if node.node_id == node_id)
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.slow
def test_a_training_outlives_a_node_where_it_fits_on_what_is_left(
    bench: Bench, cluster: Cluster, driver: Driver
) -> None:
    grow(cluster, 2)
    undisturbed = driver.run(train_with, bench.place(), bench.source, bench.manifest, (), 1)
    folder = bench.place()
    kill = Kill(moment="before the step", step=6, registered=4, by_itself=False)
    running = driver.start(train_with, folder, bench.source, bench.manifest, (kill,), 1)
    kill_node_of(cluster, folder / "notes", rank=0)
    trained = running.result()

    check_same(trained, undisturbed)
    assert [start["step"] for start in trained.happened("training started")] == [0, 4]
    assert not trained.happened("waiting for nodes")
    # Of the worker and of its node, whichever Ray notices first.
    assert "died" in trained.happened("training lost")[0]["reason"]


@pytest.mark.slow
def test_a_training_waits_for_a_node_where_it_does_not_fit_and_keeps_its_threads(
    bench: Bench, cluster: Cluster, driver: Driver
) -> None:
    grow(cluster, 2)
    undisturbed = driver.run(train_with, bench.place(), bench.source, bench.manifest, (), 2)
    folder = bench.place()
    kill = Kill(rank=1, moment="before the step", step=6, registered=4, by_itself=False)
    running = driver.start(train_with, folder, bench.source, bench.manifest, (kill,), 2)
    kill_node_of(cluster, folder / "notes", rank=1)
    while not any(event["event"] == "waiting for nodes" for event in read_events(folder)):
        time.sleep(0.1)
    # Room for two workers of two CPUs each.
    cluster.add_node(num_cpus=4, object_store_memory=OBJECT_STORE_BYTES)
    trained = running.result()

    check_same(trained, undisturbed)
    # Until Ray notices that the node is gone, a start may wait for it in vain.
    starts = trained.happened("training started")
    assert [start["step"] for start in starts] in ([0, 4], [0, 4, 4])
    assert {start["cpus"] for start in starts} == {1}
    assert len(trained.happened("waiting for nodes")) == 1
