from __future__ import annotations

import math

import pytest

from afm_dist.errors import OptionError
from afm_dist.runtime.resources import (
    Node,
    ResourceOptions,
    TaskResources,
    TrainingResources,
    cpus_per_worker,
    training_resources,
)


def nodes(*cpus: float, gpus: float = 0) -> list[Node]:
    return [Node(name=f"10.0.0.{i}", cpus=count, gpus=gpus) for i, count in enumerate(cpus, 1)]


@pytest.mark.parametrize(
    ("cpus_of_nodes", "workers", "cpus"),
    [
        ([8], 1, 8),
        ([8], 3, 2),
        ([2, 1], 1, 2),  # three CPUs, but no node has three
        ([2, 1], 3, 1),
        ([0, 8, 8], 4, 4),
        ([3, 3], 4, 1),
        ([2], 3, 0),
        ([0], 1, 0),
        ([], 1, 0),
    ],
)
def test_workers_get_equal_shares_of_whole_nodes(cpus_of_nodes: list[int], workers: int, cpus: int) -> None:
    assert cpus_per_worker(nodes(*cpus_of_nodes), workers) == cpus


def test_training_worker_with_a_gpu_gets_its_share_of_the_cpus_beside_it() -> None:
    cluster = [*nodes(16, 16, gpus=2), *nodes(64)]
    assert training_resources(cluster, 4, use_gpu=True) == TrainingResources(
        workers=4, cpus=8, gpus=1, device="cuda"
    )
    assert training_resources(cluster, 4, use_gpu=False) == TrainingResources(workers=4, cpus=16)


@pytest.mark.parametrize(
    ("workers", "use_gpu", "message"),
    [
        (9, False, "--workers 9: Ray has only 8 CPUs; use at most that many workers"),
        (3, True, "--workers 3: Ray has 2 GPUs and 8 CPUs; use at most 2 workers, or --use-gpu never"),
    ],
)
def test_more_workers_than_fit_are_refused_with_what_there_is(
    workers: int, use_gpu: bool, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        training_resources(nodes(4, 4, gpus=1), workers, use_gpu=use_gpu)


def test_sparse_gradients_have_a_backend_on_either_device() -> None:
    assert TrainingResources(workers=2, cpus=1).backend == "gloo"
    assert TrainingResources(workers=2, cpus=1, gpus=1, device="cuda").backend == "cpu:gloo,cuda:nccl"


@pytest.mark.parametrize(
    ("task", "slots"),
    [
        (TaskResources(), 6),
        (TaskResources(cpus=0.5), 12),
        (TaskResources(cpus=0.1), 60),  # not 59: 0.1 is a little more than a tenth
        (TaskResources(cpus=3), 1),  # no task spans the nodes of 4 and 2
        (TaskResources(gpus=1, device="cuda"), 3),
        (TaskResources(gpus=0.4, device="cuda"), 6),  # two on each GPU, the rest of it idle
        (TaskResources(gpus=0.25, device="cuda", cpus=0.5), 12),
    ],
)
def test_tasks_that_run_at_once_follow_from_the_shares_of_a_node(task: TaskResources, slots: int) -> None:
    assert task.slots([*nodes(4, gpus=2), *nodes(2, gpus=1)]) == slots


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e-5])
def test_impossible_share_of_cpus_is_refused(value: float) -> None:
    with pytest.raises(OptionError, match=f"--task-cpus {value}"):
        ResourceOptions(task_cpus=value)


def test_a_task_runs_on_one_gpu_at_most() -> None:
    with pytest.raises(OptionError, match=r"--task-gpus 2: must be positive and at most 1"):
        ResourceOptions(task_gpus=2)
