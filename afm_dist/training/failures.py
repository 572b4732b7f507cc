"""Why a start of Ray Train ended without a result, and whether another may do better.

A worker or a node that died is a reason to start again. What a worker raised because of its data,
its options or a full disk is not: it would be raised again.
"""

from __future__ import annotations

import re

import torch.distributed as dist
from ray import exceptions
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal import exceptions as internal
from ray.train.v2.api.exceptions import PreemptionError

from afm_dist.errors import AfmError
from afm_dist.runtime.tasks import PASSING_FAULTS


def retry_reason(error: BaseException) -> str:
    """Explain why another start may succeed.

    Args:
        error: What ``fit`` of a trainer raised.

    Raises:
        Exception: what a worker raised, when another start would only raise it again.
    """
    found = _failures(error)
    final = [failure for failure in found.values() if _passing(failure) is None]
    final.sort(key=lambda failure: not isinstance(failure, AfmError))
    if final:
        raise final[0] from error
    # A worker that died, before those that lost the connection to it.
    rank, failure = min(found.items(), key=lambda item: isinstance(item[1], RuntimeError))
    who = f"worker {rank} of the training" if rank >= 0 else "the training"
    return f"{who}: {_passing(failure)}"


def _failures(error: BaseException) -> dict[int, BaseException]:
    """Find what went wrong by rank of the worker, the innermost causes; -1 for Ray Train's controller."""
    match error:
        case WorkerGroupError():
            return {rank: _cause(failure) for rank, failure in error.worker_failures.items()}
        case _:
            return {-1: _cause(error)}


def _cause(error: BaseException) -> BaseException:
    match error:
        case ControllerError():
            return _cause(error.controller_failure)
        case internal.WorkerHealthCheckFailedError():
            return _cause(error.health_check_failure)
        case exceptions.RayTaskError() if error.cause is not None:
            return _cause(error.cause)
        case _:
            return error


def _passing(error: BaseException) -> str | None:
    """Explain why another start may succeed; None: it will not."""
    match error:
        case OSError() if error.errno is None or error.errno in PASSING_FAULTS:
            return f"the storage failed ({error})"
        case AfmError():
            return None
        case internal.WorkerGroupStartupTimeoutError():
            return "the workers were not given their CPUs in time"
        case internal.WorkerGroupStartupFailedError():
            return "a worker died while it started"
        case internal.WorkerHealthCheckTimeoutError():
            return "it does not answer any more"
        case PreemptionError():
            return "its node is being taken away"
        case exceptions.OutOfMemoryError():
            return "it was killed for memory"
        case exceptions.RayActorError():
            return _death(error)
        case exceptions.RayError() if not isinstance(error, exceptions.RayTaskError):
            return f"Ray lost it ({type(error).__name__})"
        case dist.DistError():
            return "it lost the connection to another worker"
        case RuntimeError() if "gloo" in str(error):
            return "it lost the connection to another worker"
    return None


def _death(error: exceptions.RayActorError) -> str:
    """Describe how an actor died, as far as Ray's message has it."""
    message = str(error)
    if "node has died" in message:
        return "its node died"
    if "OUT_OF_MEMORY" in message:
        return "it was killed for memory"
    address = re.search(r"\bip: (\S+)", message)
    where = f" on {address.group(1)}" if address else ""
    return f"its process{where} died, killed or crashed"
