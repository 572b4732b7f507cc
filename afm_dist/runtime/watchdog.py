"""Saying when a stage makes no progress, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable

import ray

from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import console

PATIENCE_S = 60.0


class Watchdog:
    """Says that a stage has made no progress for a while: one line and one event.

    What is normal is learned: silence counts from twice the longest pause between two steps of
    progress. A long silence is spoken of again each time it has doubled.

    Args:
        what: The stage, for the line.
        waiting_for: What it waits for, in words; asked when there is something to say.
        emit: Gets the event ``no progress``.
        patience_s: Never complain earlier.
        clock: Seconds.
    """

    def __init__(
        self,
        what: str,
        *,
        waiting_for: Callable[[], str],
        emit: Emit = no_events,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._waiting_for = waiting_for
        self._emit = emit
        self._clock = clock
        self._since = clock()
        self._patience_s = self._due_s = patience_s

    def progressed(self) -> None:
        """Note a step of progress; to be called with every one."""
        now = self._clock()
        self._patience_s = max(self._patience_s, 2 * (now - self._since))
        self._due_s = self._patience_s
        self._since = now

    def check(self) -> None:
        """Warn of a stage without progress; to be called about every second."""
        silent_s = self._clock() - self._since
        if silent_s < self._due_s:
            return
        self._due_s = 2 * silent_s
        waiting_for = self._waiting_for()
        console.warn(f"{self._what}: no progress for {silent_s:.0f} s; {waiting_for}")
        self._emit("no progress", what=self._what, seconds=round(silent_s), waiting_for=waiting_for)


def free_resources() -> str:
    """Describe what of the connected cluster is free, e.g. ``the cluster has 0 of 4 CPUs free``."""
    total, free = ray.cluster_resources(), ray.available_resources()
    if not total.get("CPU"):
        return "the cluster has no CPUs yet"
    parts = [
        f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s free" for kind in ("CPU", "GPU") if total.get(kind)
    ]
    return f"the cluster has {' and '.join(parts)}"
