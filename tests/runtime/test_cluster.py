from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import AuthenticationError

from afm_dist.errors import OptionError, StageError
from afm_dist.runtime import cluster
from afm_dist.runtime.cluster import check_workers, ensure_ray, has_autoscaler, node_of, training_resources
from afm_dist.runtime.resources import Node, ResourceOptions, TrainingResources

ON_CPUS = ResourceOptions(use_gpu="never")


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(workers: int) -> None:
    with pytest.raises(OptionError, match=f"--workers {workers}: must be at least 1"):
        check_workers(workers)


@pytest.fixture
def listening() -> Iterator[str]:
    """An address where something answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refused(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(OptionError) as error:
        ensure_ray()
    return str(error.value)


def test_address_where_nothing_listens_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, listening: str
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        message = refused(monkeypatch, address)
    assert message.startswith(f"RAY_ADDRESS={address}: nothing answers there (Connection refused); submit")
    assert "unset RAY_ADDRESS to run on this machine" in message


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_address_for_another_way_in_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert "submit the job with 'ray job submit'" in refused(monkeypatch, address)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n"),
            "Version mismatch: The cluster was started with: Ray: 2.50.0; use the same versions",
        ),
        (ConnectionError("Failed to connect to Ray cluster"), "is the token of the cluster the one here"),
        (AuthenticationError("No token was found. Ensure that"), "no token to show (No token was found)"),
        (ValueError("Invalid address format"), "is it the port of 'ray start --head' (6379)"),
    ],
)
def test_what_stands_between_a_job_and_its_cluster_is_one_line(
    monkeypatch: pytest.MonkeyPatch, listening: str, raised: Exception, expected: str
) -> None:
    def fail(**_: Any) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", fail)
    message = refused(monkeypatch, listening)
    assert message.startswith(f"RAY_ADDRESS={listening}: ")
    assert expected in message
    assert "\n" not in message


def test_a_local_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(StageError, match=r"Ray did not start on this machine \(The current node timed out"):
        ensure_ray()


def test_a_node_is_what_ray_says_of_it() -> None:
    entry = {
        "NodeID": "aa",
        "NodeManagerAddress": "10.0.0.1",
        "Resources": {
            "CPU": 8.0,
            "GPU": 2.0,
            "memory": 5e9,
            "object_store_memory": 1e9,
            "node:10.0.0.1": 1.0,
        },
    }
    assert node_of(entry, "aa") == Node(
        name="10.0.0.1", cpus=8, gpus=2, memory=5 * 10**9, object_store=10**9, driver=True
    )
    head = {"NodeID": "bb", "NodeManagerAddress": "10.0.0.9", "Resources": {}}
    assert node_of(head, "aa") == Node(name="10.0.0.9", cpus=0)


@pytest.mark.parametrize(
    ("report", "growing"),
    [
        ({"active_nodes": {"node_31c60f67": 1}, "idle_nodes": None}, False),  # started by hand
        ({"active_nodes": {"head": 1}, "idle_nodes": None}, True),
        ({"active_nodes": {}, "idle_nodes": {"ray.worker.default": 2}}, True),
        (None, False),
    ],
)
def test_node_types_that_somebody_configured_tell_of_an_autoscaler(
    report: dict | None, growing: bool
) -> None:
    assert has_autoscaler({"autoscaler_report": report}) is growing


class Fleet:
    """Nodes that come one by one, each time somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *nodes: Node, coming: tuple[Node, ...] = ()) -> None:
        self.nodes, self.coming = list(nodes), list(coming)
        self.requested: list[list[dict[str, int]]] = []
        monkeypatch.setattr(cluster, "nodes", lambda: list(self.nodes))
        monkeypatch.setattr(cluster, "_internal_kv_get", lambda key: None)
        monkeypatch.setattr(cluster, "request_resources", lambda bundles: self.requested.append(bundles))
        monkeypatch.setattr(cluster.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.nodes.append(self.coming.pop(0))


HEAD = Node(name="10.0.0.9", cpus=0)
WORKER = Node(name="10.0.0.1", cpus=4)


def test_training_waits_for_the_first_nodes_and_asks_for_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = Fleet(monkeypatch, HEAD, coming=(HEAD, WORKER))
    assert training_resources(ON_CPUS, 2) == TrainingResources(workers=2, cpus=2)
    assert fleet.requested == [[{"CPU": 1}, {"CPU": 1}], []]
    waiting = "waiting for nodes: 2 workers need 2 CPUs, the cluster has 0 yet"
    assert capsys.readouterr().out.count(waiting) == 1


def test_training_waits_for_an_autoscaler_that_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    Fleet(monkeypatch, HEAD, WORKER, coming=(WORKER,))
    status = b'{"autoscaler_report": {"active_nodes": {"worker": 1}}}'
    monkeypatch.setattr(cluster, "_internal_kv_get", lambda key: status)
    assert training_resources(ON_CPUS, 8) == TrainingResources(workers=8, cpus=1)


def test_a_cluster_that_does_not_grow_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(monkeypatch, WORKER, coming=(WORKER,))
    with pytest.raises(OptionError, match="--workers 8: Ray has only 4 CPUs"):
        training_resources(ON_CPUS, 8)
    assert not fleet.requested


def test_waiting_for_nodes_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    Fleet(monkeypatch, HEAD, coming=(HEAD,) * 10)
    monkeypatch.setattr(cluster, "WAIT_S", -1)
    with pytest.raises(OptionError, match="--workers 1: Ray has only 0 CPUs"):
        training_resources(ON_CPUS, 1)


@pytest.mark.parametrize(
    ("option", "gpus", "trouble", "used"),
    [
        ("auto", 2, None, True),
        ("auto", 2, "no driver", False),
        ("auto", 0, None, False),
        ("never", 2, None, False),
        ("always", 0, None, True),  # they are still to come
    ],
)
def test_gpus_are_used_where_ray_offers_some_that_torch_can_use(
    monkeypatch: pytest.MonkeyPatch, option: Any, gpus: int, trouble: str | None, used: bool
) -> None:
    Fleet(monkeypatch, Node(name="10.0.0.1", cpus=4, gpus=gpus))
    monkeypatch.setattr(cluster, "_gpu_problem", lambda *_: trouble)
    assert cluster.use_gpus(ResourceOptions(use_gpu=option)) is used


def test_gpus_that_are_demanded_and_unusable_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Fleet(monkeypatch, Node(name="10.0.0.1", cpus=4, gpus=1))
    monkeypatch.setattr(cluster, "_gpu_problem", lambda *_: "no driver")
    with pytest.raises(OptionError, match="--use-gpu always: no driver"):
        cluster.use_gpus(ResourceOptions(use_gpu="always"))
