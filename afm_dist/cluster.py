"""Connecting to Ray: the cluster a job was submitted to, or a local one started for this run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from afm_dist import console, resources, storage
from afm_dist.errors import OptionError
from afm_dist.resources import Node, ResourceOptions, TaskResources, TrainingResources

MIN_OBJECT_STORE_BYTES = 256 << 20

# Ray Train polls its workers every 2 s by default: seconds of waiting per short training.
_RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
}


def under_job_submit() -> bool:
    """Whether this process was started by ``ray job submit``, in an unpacked copy of the sources."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_paths(**options: str | None) -> None:
    """Refuse relative paths where the working directory is a temporary copy.

    Raises:
        OptionError: a relative path under ``ray job submit``.
    """
    if not under_job_submit():
        return
    for option, value in options.items():
        if value is not None and not storage.is_uri(value) and not Path(value).is_absolute():
            raise OptionError(
                f"--{option.replace('_', '-')} {value}: relative path under 'ray job submit', where the "
                "working directory is an unpacked copy that is thrown away; give an absolute path or a URI"
            )


def check_workers(workers: int) -> None:
    """Refuse a number of workers that no cluster can have.

    Raises:
        OptionError: fewer than one.
    """
    if workers < 1:
        raise OptionError(f"--workers {workers}: must be at least 1")


def ensure_ray(*, object_bytes: int = 0) -> None:
    """Connect to Ray if that has not happened yet.

    Uses the cluster named by ``RAY_ADDRESS`` (set by ``ray job submit``), else starts a local
    Ray with one CPU per core, which is stopped when the process ends.

    Args:
        object_bytes: Largest model the object store must hold; a local store gets twice that.
    """
    if ray.is_initialized():
        return
    for name, value in _RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        # The logs of workers stay in the dashboard; the driver says what happened.
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
        return
    # A local Ray has nobody who collects them.
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    console.say("starting a local Ray")
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=max(MIN_OBJECT_STORE_BYTES, 2 * object_bytes),
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def available_cpus() -> int:
    """CPUs the connected cluster has now, at least 1: a head without CPUs may be alone at first."""
    return max(1, sum(int(node.cpus) for node in nodes()))


def nodes() -> list[Node]:
    """The nodes of the connected cluster that are alive."""
    return [node_of(entry) for entry in ray.nodes() if entry["Alive"]]


def node_of(entry: Mapping[str, Any]) -> Node:
    """A node from an entry of ``ray.nodes()``."""
    offered = entry["Resources"]
    return Node(
        name=entry["NodeManagerAddress"],
        cpus=offered.get("CPU", 0),
        gpus=offered.get("GPU", 0),
        memory=int(offered.get("memory", 0)),
        object_store=int(offered.get("object_store_memory", 0)),
    )


def task_resources(options: ResourceOptions) -> TaskResources:
    """What each task of a pass gets of the connected cluster."""
    if use_gpus(options):
        return TaskResources(cpus=options.task_cpus, gpus=options.task_gpus, device="cuda")
    return TaskResources(cpus=options.task_cpus)


def training_resources(options: ResourceOptions, workers: int) -> TrainingResources:
    """What each training worker gets of the connected cluster.

    Raises:
        OptionError: so many workers do not fit.
    """
    return resources.training_resources(nodes(), workers, use_gpu=use_gpus(options))


def task_slots(task: TaskResources) -> int:
    """How many such tasks run at once in the connected cluster, at least 1: it may be about to grow."""
    return max(1, task.slots(nodes()))


def use_gpus(options: ResourceOptions) -> bool:
    """Whether models run on GPUs: as the options say, and where nodes offer some."""
    if options.use_gpu == "auto":
        return any(node.gpus for node in nodes())
    return options.use_gpu == "always"
