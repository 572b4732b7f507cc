"""Running one Ray task per item with a bounded number in flight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from afm_dist.cluster import available_cpus
from afm_dist.errors import AfmError, StageError

Item = TypeVar("Item")

IN_FLIGHT_PER_SLOT = 2


def run_tasks(
    submit: Callable[[Item], Any],
    items: list[Item],
    *,
    finished: Callable[[Item, Any], None],
    slots: Callable[[], int] = available_cpus,
) -> None:
    """Run one Ray task per item with a bounded number in flight: twice those that run at once.

    The bound follows a cluster that grows or shrinks meanwhile.

    Args:
        submit: Starts the task of an item and returns its object reference.
        items: In the order in which to start them.
        finished: Called on the driver with each item and its result, in order of completion.
        slots: How many tasks run at once in the cluster as it is now.

    Raises:
        AfmError: what a task raised.
        StageError: workers kept dying, beyond Ray's own retries.
    """
    waiting = list(reversed(items))
    in_flight: dict[Any, Item] = {}
    while waiting or in_flight:
        limit = IN_FLIGHT_PER_SLOT * slots()
        while waiting and len(in_flight) < limit:
            item = waiting.pop()
            in_flight[submit(item)] = item
        ready, _ = ray.wait(list(in_flight), num_returns=1)
        for reference in ready:
            item = in_flight.pop(reference)
            try:
                result = ray.get(reference)
            except RayTaskError as error:
                if isinstance(error.cause, AfmError | OSError):
                    raise error.cause from None
                raise
            except RayError as error:
                raise StageError(
                    f"task {item!r} was lost again and again ({type(error).__name__}); look for workers "
                    "killed for memory, then run the same command to go on"
                ) from error
            finished(item, result)
