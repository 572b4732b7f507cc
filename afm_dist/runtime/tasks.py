"""Running one Ray task per item: a bounded number in flight, and lost ones again.

Tasks are submitted with ``max_retries=0``: what Ray repeats by itself nobody hears of. An item
whose worker or node died, or that met a passing fault of the storage, is submitted again from
here, with the reason in one line and one event, up to ``MAX_ATTEMPTS`` times. What a task raised
because of its input is never tried again.
"""

from __future__ import annotations

import errno
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray import exceptions

from afm_dist.errors import AfmError, StageError
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import console
from afm_dist.runtime.cluster import available_cpus
from afm_dist.runtime.watchdog import Watchdog, free_resources
from afm_dist.runtime.worker_logs import crash_report

Item = TypeVar("Item")

MAX_ATTEMPTS = 6
# Before the second attempt; doubles with each further one.
PAUSE_S = 1.0
IN_FLIGHT_PER_SLOT = 2
# So many ask for CPUs even where there are none yet, for an autoscaler to see.
MIN_IN_FLIGHT = 16
POLL_S = 1.0
WORKER_DIED = "the worker died"
STOP_S = 10.0

# Faults of a disk or a network that may pass; a full disk or a missing permission does not.
PASSING_FAULTS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EIO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


class RetryError(Exception):
    """Raised by ``finished`` when a task's result is not there, and another attempt may mend it."""


@dataclass
class _Attempt(Generic[Item]):
    item: Item
    number: int = 1
    due: float = 0.0


def run_tasks(
    submit: Callable[[Item], Any],
    items: Sequence[Item],
    *,
    finished: Callable[[Item, Any], None],
    what: str = "tasks",
    name_of: Callable[[Item], str] = str,
    slots: Callable[[], int] = available_cpus,
    emit: Emit = no_events,
) -> None:
    """Run one Ray task per item with a bounded number in flight: about twice what can run at once.

    The bound follows a cluster that grows or shrinks meanwhile. When this ends, no task runs on.

    Args:
        submit: Starts the task of an item, with ``max_retries=0``, and returns its object reference.
        items: In the order in which to start them.
        finished: Called on the driver with each item and its result, in order of completion.
        what: What the tasks are for, in messages and events.
        name_of: What an item is called there.
        slots: How many tasks the cluster can run at once now.
        emit: Gets the events ``task lost`` and ``no progress``.

    Raises:
        AfmError: what a task or ``finished`` raised.
        OSError: the same; passing faults of the storage only after ``MAX_ATTEMPTS``, as StageError.
        StageError: an item's workers kept dying, or Ray could not run it.
    """
    waiting = deque(_Attempt(item) for item in items)
    again: list[_Attempt[Item]] = []
    in_flight: dict[Any, _Attempt[Item]] = {}

    def waiting_for() -> str:
        return f"{len(in_flight)} tasks in flight, {len(waiting) + len(again)} waiting; {free_resources()}"

    watch = Watchdog(what, waiting_for=waiting_for, emit=emit)
    try:
        while waiting or again or in_flight:
            now = time.monotonic()
            waiting.extendleft(attempt for attempt in again if attempt.due <= now)
            again = [attempt for attempt in again if attempt.due > now]
            limit = max(MIN_IN_FLIGHT, IN_FLIGHT_PER_SLOT * slots())
            while waiting and len(in_flight) < limit:
                attempt = waiting.popleft()
                in_flight[submit(attempt.item)] = attempt
            lost: dict[str, list[_Attempt[Item]]] = defaultdict(list)
            for reference in _ready(list(in_flight)):
                attempt = in_flight.pop(reference)
                reason = _finish(reference, attempt.item, finished, f"{what}: {name_of(attempt.item)}")
                if reason is None:
                    watch.progressed()
                else:
                    lost[reason].append(attempt)
            for reason, attempts in lost.items():
                _warn_of_retries(what, reason, attempts, name_of, emit)
                again += [_next(attempt) for attempt in attempts]
            watch.check()
    except BaseException:
        _stop(list(in_flight))
        raise


def _ready(references: list[Any]) -> list[Any]:
    """Return the tasks that are done, after a moment at most."""
    if not references:
        time.sleep(POLL_S / 10)
        return []
    ray.wait(references, num_returns=1, timeout=POLL_S)
    ready: list[Any] = ray.wait(references, num_returns=len(references), timeout=0)[0]
    return ready


def _finish(reference: Any, item: Item, finished: Callable[[Item, Any], None], name: str) -> str | None:
    """Hand over a result; returns why there is none when the item is to be tried again."""
    try:
        result = ray.get(reference)
    except exceptions.RayError as error:
        reason = _passing(error)
        if reason is not None:
            return reason
        if not isinstance(error, exceptions.RayTaskError):
            raise StageError(f"{name} cannot run ({type(error).__name__}: {error})") from error
        if isinstance(error.cause, AfmError | OSError):
            raise error.cause from None
        raise
    try:
        finished(item, result)
    except RetryError as error:
        return str(error)
    return None


def _passing(error: BaseException) -> str | None:
    """Explain why another attempt may succeed; None: it will not."""
    match error:
        case exceptions.RayTaskError():
            return _passing(error.cause)
        case exceptions.OutOfMemoryError():
            return "the worker was killed for memory (with --task-cpus 2 half as many share a machine)"
        case exceptions.WorkerCrashedError():
            return WORKER_DIED
        case exceptions.NodeDiedError() | exceptions.LocalRayletDiedError():
            return "the node died"
        case exceptions.ObjectLostError():
            return "data in Ray's object store was lost with a node"
        case OSError() if error.errno is None or error.errno in PASSING_FAULTS:
            return f"the storage failed ({error})"
    return None


def _warn_of_retries(
    what: str,
    reason: str,
    attempts: Sequence[_Attempt[Item]],
    name_of: Callable[[Item], str],
    emit: Emit,
) -> None:
    """Warn which items are tried again, and why.

    Raises:
        StageError: one of them was tried often enough.
    """
    hint = f" ({crash_report()})" if reason == WORKER_DIED else ""
    names = [name_of(attempt.item) for attempt in attempts]
    for attempt, name in zip(attempts, names, strict=True):
        emit("task lost", what=what, task=name, attempt=attempt.number, reason=reason)
        if attempt.number >= MAX_ATTEMPTS:
            raise StageError(
                f"{what}: {name} failed {attempt.number} times, at last: {reason}; mend that, then run the "
                f"same command to go on{hint}"
            )
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    console.warn(f"{what}: doing {listed} again: {reason}{hint}")


def _next(attempt: _Attempt[Item]) -> _Attempt[Item]:
    pause = PAUSE_S * 2 ** (attempt.number - 1)
    return _Attempt(attempt.item, attempt.number + 1, time.monotonic() + pause)


def _stop(references: list[Any]) -> None:
    """End tasks that still run, so that none writes after a failure: first gently, then not."""
    for force in (False, True):
        for reference in references:
            ray.cancel(reference, force=force)
        if references:
            _, references = ray.wait(references, num_returns=len(references), timeout=STOP_S)
