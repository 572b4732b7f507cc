"""Connecting to Ray: the cluster a job was submitted to, or a local one started for this run."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import AuthenticationError, RayError
from ray.experimental.internal_kv import _internal_kv_get

from afm_dist import storage
from afm_dist.errors import OptionError, StageError
from afm_dist.runtime import console, machine, resources
from afm_dist.runtime.resources import (
    THIS_MACHINE,
    Cluster,
    Node,
    ResourceOptions,
    TaskResources,
    TrainingResources,
)

# Ray Train polls its workers every 2 s by default: seconds of waiting per short training.
_RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
}
ADDRESS = "RAY_ADDRESS"
REACH_S = 5.0
WAIT_POLL_S = 2.0
WAIT_S = 1800.0


def check_paths(**options: str | None) -> None:
    """Refuse paths that nobody means: empty ones, and those relative to a temporary copy.

    Args:
        options: Paths by the names of their options; None where one is not given.

    Raises:
        OptionError: an empty path, as of a variable of the shell that is not set, which would be the working
            directory; or a relative one under ``ray job submit``.
    """
    for option, value in options.items():
        if value == "":
            raise OptionError(f"--{option.replace('_', '-')}: empty; give a path or a URI")
    if not machine.under_job_submit():
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

    Raises:
        OptionError: the cluster cannot be reached, or is of another version.
        StageError: a local Ray did not start.
    """
    if ray.is_initialized():
        return
    for name, value in _RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address := os.environ.get(ADDRESS):
        _connect(address)
        return
    # A local Ray has nobody who collects them.
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    shared = machine.shared_memory()
    store = machine.object_store_bytes(object_bytes, shared)
    if shared is not None and shared < store:
        console.warn(
            f"only {shared / 1e6:,.0f} MB of shared memory are free: Ray's object store goes to the disk, "
            "which is slower; start a container with --shm-size=1g"
        )
    if not machine.holds(store, object_bytes):
        console.warn(
            f"the model takes {object_bytes / 1e9:.1f} GB, and only {store / 1e9:.1f} GB of shared memory "
            "are free for Ray's object store, which goes to the disk with the rest"
        )
    console.info("starting a local Ray")
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=store,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:
        # Ray raises what is at hand here: Exception itself, RuntimeError, ValueError, OSError.
        raise StageError(
            f"Ray did not start on this machine ({error}); is it overloaded, or out of memory or disk?"
        ) from error


def _connect(address: str) -> None:
    """Connect to a running cluster.

    Raises:
        OptionError: what stands in the way, in one line.
    """
    named = f"{ADDRESS}={address}"
    _check_address(address)
    try:
        # What workers print stays in their logs; Ray itself reports the death of one to the driver.
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except AuthenticationError as error:
        raise OptionError(f"{named}: no token to show ({str(error).partition('. ')[0]})") from error
    except RuntimeError as error:
        raise OptionError(
            f"{named}: {str(error).strip()}; use the same versions on both sides, or submit the job with "
            "'ray job submit'"
        ) from error
    except (ConnectionError, ValueError, RayError) as error:
        raise OptionError(
            f"{named}: {error}; is it the port of 'ray start --head' (6379), and is the token of the cluster "
            "the one here (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)?"
        ) from error


def _check_address(address: str) -> None:
    """Refuse what Ray would try for minutes before it gives up.

    Raises:
        OptionError: another kind of address, or nothing listens there.
    """
    instead = (
        f"submit the job with 'ray job submit', name the head as {ADDRESS}=HOST:6379 on one of its nodes, or "
        f"unset {ADDRESS} to run on this machine"
    )
    if "://" in address:
        raise OptionError(f"{ADDRESS}={address}: jobs do not run through this kind of address; {instead}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        reason = error.strerror or error
        raise OptionError(f"{ADDRESS}={address}: nothing answers there ({reason}); {instead}") from error


def view(*, object_bytes: int = 0) -> Cluster:
    """Describe the cluster a job would run on: the one connected or named, else this machine.

    Starts nothing.

    Raises:
        OptionError: as ``ensure_ray``.
    """
    if not ray.is_initialized() and not os.environ.get(ADDRESS):
        return Cluster(nodes=(machine.this_machine(object_bytes),), where=THIS_MACHINE)
    ensure_ray()
    there = nodes()
    return Cluster(
        nodes=tuple(there),
        where=f"the cluster at {ray.get_runtime_context().gcs_address}",
        growing=is_growing(there),
    )


def available_cpus() -> int:
    """Count the CPUs the connected cluster has now, at least 1: a head without any may be alone at first."""
    return max(1, sum(int(node.cpus) for node in nodes()))


def nodes() -> list[Node]:
    """List the nodes of the connected cluster that are alive."""
    own = ray.get_runtime_context().get_node_id()
    return [node_of(entry, own) for entry in ray.nodes() if entry["Alive"]]


def node_of(entry: Mapping[str, Any], driver: str) -> Node:
    """Make a node from an entry of ``ray.nodes()``; ``driver`` is the id of the driver's node."""
    offered = entry["Resources"]
    return Node(
        name=entry["NodeManagerAddress"],
        cpus=offered.get("CPU", 0),
        gpus=offered.get("GPU", 0),
        memory=int(offered.get("memory", 0)),
        object_store=int(offered.get("object_store_memory", 0)),
        driver=entry["NodeID"] == driver,
    )


def is_growing(there: list[Node]) -> bool:
    """Return whether more nodes may come: none with CPUs is up yet, or an autoscaler is at work."""
    if not any(node.cpus for node in there):
        return True
    status = _internal_kv_get(b"__autoscaling_status")
    return status is not None and has_autoscaler(json.loads(status))


def has_autoscaler(status: Mapping[str, Any]) -> bool:
    """Return whether Ray's own report tells of node types that somebody configured.

    Where nodes were started by hand, each has a type of its own, ``node_`` and its id.
    """
    report = status.get("autoscaler_report") or {}
    types = {*(report.get("active_nodes") or {}), *(report.get("idle_nodes") or {})}
    return any(not name.startswith("node_") for name in types)


def task_resources(options: ResourceOptions) -> TaskResources:
    """Compute what each task of a pass gets of the connected cluster."""
    if use_gpus(options):
        return TaskResources(cpus=options.task_cpus, gpus=options.task_gpus, device="cuda")
    return TaskResources(cpus=options.task_cpus)


def training_resources(options: ResourceOptions, workers: int) -> TrainingResources:
    """Compute what each training worker gets of the connected cluster; waits for nodes that will come.

    Raises:
        OptionError: so many workers do not fit, and no more nodes come.
    """
    use_gpu = use_gpus(options)
    deadline = time.monotonic() + WAIT_S
    requested = False
    while True:
        there = nodes()
        try:
            found = resources.training_resources(there, workers, use_gpu=use_gpu)
        except OptionError:
            if not is_growing(there) or time.monotonic() > deadline:
                raise
        else:
            if requested:
                request_resources(bundles=[])
            return found
        if not requested:
            requested = True
            bundle = {"CPU": 1, "GPU": 1} if use_gpu else {"CPU": 1}
            request_resources(bundles=[bundle] * workers)
            console.info(
                f"  waiting for nodes: {workers} workers need {workers} {'GPUs' if use_gpu else 'CPUs'}, the "
                f"cluster has {sum(node.gpus if use_gpu else node.cpus for node in there):g} yet"
            )
        time.sleep(WAIT_POLL_S)


def task_slots(task: TaskResources) -> int:
    """Count such tasks that run at once in the connected cluster, at least 1: it may be about to grow."""
    return max(1, task.slots(nodes()))


def use_gpus(options: ResourceOptions) -> bool:
    """Decide whether models run on GPUs: by the options, and where nodes offer some that torch can use.

    Raises:
        OptionError: GPUs are demanded, and torch cannot use those there are.
    """
    if options.use_gpu == "never" or (options.use_gpu == "auto" and not any(node.gpus for node in nodes())):
        return False
    problem = _gpu_problem()
    if problem is not None and options.use_gpu == "always":
        raise OptionError(f"--use-gpu always: {problem}")
    return problem is None


def _gpu_problem() -> str | None:
    """Explain why torch cannot use a GPU that Ray offers; None: it can. Checked once per connection."""
    return _cached_gpu_problem(ray.get_runtime_context().get_job_id())


@lru_cache(maxsize=1)
def _cached_gpu_problem(job: str) -> str | None:
    del job
    try:
        found = ray.get(_see_gpu.remote(), timeout=WAIT_S)
    except RayError as error:
        found = f"{type(error).__name__} while looking at one"
    problem = found and f"Ray offers GPUs, but torch cannot use them ({found})"
    if problem:
        console.warn(f"{problem}; models run on CPUs")
    return problem


@ray.remote(num_cpus=0, num_gpus=0.01, max_retries=2)
def _see_gpu() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA"
    return "no driver, or no visible device"
