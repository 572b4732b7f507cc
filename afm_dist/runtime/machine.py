"""What this machine has, as a local Ray would see it, and how much of it that Ray may take."""

from __future__ import annotations

import json
import os
import sys

from ray._private.utils import estimate_available_memory, get_num_cpus, get_shared_memory_bytes

from afm_dist.runtime.resources import THIS_MACHINE, Node

MIN_OBJECT_STORE_BYTES = 256 << 20
# The store's own book-keeping, and the small objects beside the model.
STORE_OVERHEAD = 1.1

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def under_job_submit() -> bool:
    """Return whether this process was started by ``ray job submit``, in an unpacked copy of the sources."""
    return JOB_CONFIG in os.environ


def this_machine(object_bytes: int) -> Node:
    """Describe this machine as the only node of a local Ray that holds a model of so many bytes."""
    import torch

    store = object_store_bytes(object_bytes, shared_memory())
    return Node(
        name=THIS_MACHINE,
        cpus=cores(),
        gpus=torch.cuda.device_count(),
        memory=max(0, estimate_available_memory() - store),
        object_store=store,
        driver=True,
    )


def cores() -> int:
    """Count the cores that this process may use: what a local Ray takes for CPUs."""
    return int(get_num_cpus(override_docker_cpu_warning=True))


def shared_memory() -> int | None:
    """Return the free bytes of the file system of Ray's object store; None where it is none in memory."""
    return get_shared_memory_bytes() if sys.platform == "linux" else None


def object_store_bytes(model: int, shared: int | None) -> int:
    """Choose the bytes of a local Ray's object store: twice the model, but no more than there is.

    Args:
        model: Bytes of the largest model that is shared.
        shared: Free bytes of shared memory; None: no limit.
    """
    wanted = max(MIN_OBJECT_STORE_BYTES, 2 * model)
    if shared is None or wanted <= shared:
        return wanted
    # A small store may lie on the disk, where Ray puts one for which shared memory is too short.
    return MIN_OBJECT_STORE_BYTES if holds(MIN_OBJECT_STORE_BYTES, model) else shared


def holds(store: int, model: int) -> bool:
    """Return whether an object store of so many bytes can hold a model of so many."""
    return STORE_OVERHEAD * model <= store


def work_in_driver() -> None:
    """Set up a driver before it computes: all cores, and no denormals, as in its workers.

    A driver of ``ray job submit`` inherits ``OMP_NUM_THREADS=1`` from an actor of Ray, for tasks to share a
    node. It runs no task; decompositions and the measurement of throughput would have one thread. A number
    the user gave in the job's runtime environment stays.
    """
    import torch

    torch.set_flush_denormal(True)
    if not under_job_submit() or os.environ.get("OMP_NUM_THREADS") != "1":
        return
    job = json.loads(os.environ[JOB_CONFIG])
    if "OMP_NUM_THREADS" not in job.get("runtime_env", {}).get("env_vars", {}):
        torch.set_num_threads(cores())


def work_with_threads(count: int) -> None:
    """Set up a worker before it computes: so many threads, and no denormals.

    L2 decays weights that nothing uses towards zero. Where two of them meet, the products are denormal
    numbers, each of which takes a processor as long as a hundred others, and are nothing beside what they
    are added to; so they count as zero, in the thread that calls this and in those it starts.
    """
    import torch

    torch.set_num_threads(count)
    torch.set_flush_denormal(True)
