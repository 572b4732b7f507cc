"""A work directory: what of a job over raw rows was done already, for which input and options.

Of a preparation it lies in ``<output>/.work`` while that runs. Each finished task leaves a receipt; a
run with the same plan reads the receipts instead of doing the tasks again.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from afm_dist import console, storage
from afm_dist.cluster import task_slots
from afm_dist.errors import DataError
from afm_dist.events import Emit, unheard
from afm_dist.resources import ONE_CPU, TaskResources
from afm_dist.tasks import run_tasks

FOLDER = ".work"
PLAN = "plan.json"
CLEAR_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
# Linux counts kilobytes, macOS bytes.
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of a stage.

    Attributes:
        key: Names the receipt; a function of the plan alone.
        function: Module-level function; its result is plain JSON.
        arguments: Its arguments; object references are resolved.
        weight: How much it advances the progress bar.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    weight: int = 1


@dataclass
class Usage:
    """What the workers needed.

    Attributes:
        peak_bytes: Largest resident memory of a worker process during a task.
    """

    peak_bytes: int = 0


@ray.remote(max_retries=0)
def _run_task(receipt: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    # Polars sizes its thread pool when first used; Ray has given this task one core.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    _forget_peak_memory()
    result = function(*arguments)
    storage.write_json(receipt, result)
    return result, peak_memory()


def _forget_peak_memory() -> None:
    """Begin a new peak, where the system can; workers are shared with other jobs."""
    with suppress(OSError):
        CLEAR_PEAK.write_text("5")


def peak_memory() -> int:
    """Largest resident memory of this process, in bytes."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


class WorkDirectory:
    """Receipts of finished tasks.

    Args:
        path: Where they lie.
        plan: Everything the result depends on; another plan's receipts are thrown away.
        keep: Whether receipts of an interrupted run may be used.
        usage: Kept up to date while tasks finish.
        resources: What each task gets.
        emit: Gets the events of lost tasks.
    """

    def __init__(
        self,
        path: str,
        plan: dict[str, Any],
        *,
        keep: bool,
        usage: Usage,
        resources: TaskResources = ONE_CPU,
        emit: Emit = unheard,
    ) -> None:
        self.usage = usage
        self._resources = resources
        self._emit = emit
        self.path = path
        self._plan = plan
        self.resumed = keep and self._recorded() == plan
        if not self.resumed:
            self.remove()

    def _recorded(self) -> Any:
        """The plan of an interrupted run; None: there is none, or it is damaged."""
        try:
            return storage.read_json(self.folder(PLAN))
        except DataError:
            return None

    def begin(self) -> None:
        """Record the plan."""
        if not self.resumed:
            storage.write_json(storage.join(self.path, PLAN), self._plan)

    def folder(self, *parts: str) -> str:
        """A location in the work directory."""
        return storage.join(self.path, *parts)

    def receipt(self, stage: str, key: str) -> str:
        """Where a task's receipt lies."""
        return self.folder(stage, f"{key}.json")

    def once(self, key: str, action: Callable[[], None]) -> None:
        """Do something on the driver that must not be repeated on resume."""
        receipt = self.receipt("driver", key)
        if not storage.exists(receipt):
            action()
            storage.write_json(receipt, {})

    def run(
        self,
        stage: str,
        what: str,
        tasks: Sequence[Task],
        *,
        unit: str = "rows",
        resources: TaskResources | None = None,
    ) -> list[Any]:
        """Do the tasks of a stage that have no receipt yet, on Ray.

        Args:
            stage: Folder of the receipts.
            what: Name of the stage, for people.
            tasks: In order.
            unit: Of their weights.
            resources: What each gets, if not what the others do.

        Returns:
            Every task's result, in the order of the tasks.

        Raises:
            AfmError: what a task raised.
        """
        done = set(storage.list_names(self.folder(stage)))
        results: dict[str, Any] = {}
        for task in tasks:
            if f"{task.key}.json" in done:
                # The task of a damaged receipt is done again.
                with suppress(DataError):
                    results[task.key] = storage.read_json(self.receipt(stage, task.key))
        todo = [task for task in tasks if task.key not in results]
        each = resources or self._resources
        if results:
            console.say(f"  {what}: {len(results)} of {len(tasks)} tasks were done before")

        def submit(task: Task) -> Any:
            receipt = self.receipt(stage, task.key)
            options = {"name": what, **each.ray_options}
            return _run_task.options(**options).remote(receipt, task.function, *task.arguments)

        done_before = sum(task.weight for task in tasks) - sum(task.weight for task in todo)
        with console.progress(what, sum(task.weight for task in tasks), unit, before=done_before) as advance:

            def finished(task: Task, done: tuple[Any, int]) -> None:
                results[task.key], peak_bytes = done
                self.usage.peak_bytes = max(self.usage.peak_bytes, peak_bytes)
                advance(task.weight)

            run_tasks(
                submit,
                todo,
                finished=finished,
                what=what,
                name_of=lambda task: task.key,
                slots=lambda: task_slots(each),
                emit=self._emit,
            )
        return [results[task.key] for task in tasks]

    def remove(self) -> None:
        """Delete it all; the plan first, so that no run goes on with what an interruption here leaves."""
        storage.remove(self.folder(PLAN))
        storage.remove(self.path)
