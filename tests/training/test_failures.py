from __future__ import annotations

import errno

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from afm_dist.errors import DataError, StageError, StorageError
from afm_dist.training.failures import retry_reason

DEAD = WorkerHealthCheckFailedError("dead", ActorDiedError())
CUT_OFF = RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4242")


def group(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", dict(enumerate(failures)))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (group(CUT_OFF, DEAD), "worker 1 of the training: its process died, killed or crashed"),
        (group(CUT_OFF), "worker 0 of the training: it lost the connection to another worker"),
        (group(OSError("slow down")), "worker 0 of the training: the storage failed (slow down)"),
        (group(StorageError("busy")), "worker 0 of the training: the storage failed (busy)"),
        (
            ControllerError(WorkerGroupStartupTimeoutError(2)),
            "the training: the workers were not given their CPUs in time",
        ),
        (ActorDiedError(), "the training: its process died, killed or crashed"),
    ],
)
def test_a_death_is_a_reason_to_try_again(error: Exception, reason: str) -> None:
    assert retry_reason(error) == reason


DIVERGED = DataError("the training loss became nan")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (group(DIVERGED), DIVERGED),
        (group(CUT_OFF, DIVERGED), DIVERGED),
        (group(TypeError("a mistake of ours"), DIVERGED), DIVERGED),
        (group(DEAD, DIVERGED), DIVERGED),
        (ControllerError(StageError("went back")), StageError("went back")),
        (group(FULL), FULL),
        (group(CUT_OFF, StorageError("gloo is full", errno.ENOSPC)), StorageError("gloo is full")),
        (group(CUT_OFF, TypeError("a mistake of ours")), TypeError("a mistake of ours")),
        (group(RuntimeError("shapes differ")), RuntimeError("shapes differ")),
        (ControllerError(RayTaskError("f", "", FULL)), FULL),
    ],
)
def test_what_another_start_would_only_repeat_is_raised(error: Exception, raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught:
        retry_reason(error)

    assert str(caught.value) == str(raised)
