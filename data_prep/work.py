"""A work directory: what of a job over raw rows was done already, for which input and options.

Of a preparation it lies in ``<output>/.work`` while that runs. Each finished task leaves a receipt; a
run with the same plan reads the receipts instead of doing the tasks again, as long as the files that
the tasks wrote are as they were.
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

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import console
from afm_dist.runtime.cluster import task_slots
from afm_dist.runtime.resources import ONE_CPU, TaskResources
from afm_dist.runtime.tasks import run_tasks
from data_prep import receipts
from data_prep.receipts import Receipt

FOLDER = ".work"
PLAN = "plan.json"
# Receipts of what the driver does.
DRIVER = "driver"
# Whose the folder is, whatever else it holds: written first, deleted last.
OWNER = "owner.json"
OWNED = {"written_by": "afm-dist", "holds": "what is left of a job that was interrupted, to go on from"}
CLEAR_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
# Linux counts kilobytes, macOS bytes.
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of a stage.

    Attributes:
        key: Names the receipt; a function of the plan alone.
        function: Module-level function; what it returns is plain JSON.
        arguments: Its arguments; object references are resolved.
        result: What that becomes; a receipt that holds anything else is damaged.
        weight: How much it advances the progress bar.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    result: Any = Any
    weight: int = 1


@dataclass
class Usage:
    """What the workers needed.

    Attributes:
        peak_bytes: Largest resident memory of a worker process during a task.
    """

    peak_bytes: int = 0


@ray.remote(max_retries=0)
def _run_task(receipt: str, folder: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    # Polars sizes its thread pool when first used; Ray has given this task one core.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    _forget_peak_memory()
    return receipts.leave(receipt, folder, function, *arguments), peak_memory()


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
        emit: Emit = no_events,
    ) -> None:
        self.usage = usage
        self._resources = resources
        self._emit = emit
        self.path = path
        # In it lie all files of the job, also the result.
        self._root = path.rpartition("/")[0]
        self._plan = plan
        self.resumed = keep and _content(self.folder(PLAN)) == plan
        if not self.resumed:
            self._clear()

    def begin(self) -> None:
        """Record whose the folder is, and the plan."""
        if not self.resumed:
            self._mark()
            storage.write_json(self.folder(PLAN), self._plan)

    def folder(self, *parts: str) -> str:
        """A location in the work directory."""
        return storage.join(self.path, *parts)

    def receipt(self, stage: str, key: str) -> str:
        """Where a task's receipt lies."""
        return self.folder(stage, f"{key}.json")

    def once(self, key: str, action: Callable[[], None]) -> None:
        """Do something on the driver that must not be repeated on resume."""
        receipt = self.receipt(DRIVER, key)
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
        each = resources or self._resources
        results = self._done_before(stage, what, tasks, each)
        todo = [task for task in tasks if task.key not in results]
        if results:
            console.info(f"  {what}: {len(results)} of {len(tasks)} tasks were done before")

        def submit(task: Task) -> Any:
            receipt = self.receipt(stage, task.key)
            options = {"name": what, **each.ray_options}
            return _run_task.options(**options).remote(receipt, self._root, task.function, *task.arguments)

        done_before = sum(task.weight for task in tasks) - sum(task.weight for task in todo)
        with console.progress(what, sum(task.weight for task in tasks), unit, before=done_before) as advance:

            def finished(task: Task, done: tuple[Any, int]) -> None:
                result, peak_bytes = done
                # As a receipt would give it.
                results[task.key] = storage.as_typed(result, task.result, source=f"{what} {task.key}")
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

    def _done_before(
        self, stage: str, what: str, tasks: Sequence[Task], resources: TaskResources
    ) -> dict[str, Any]:
        """Results of tasks that need not be done again, by key."""
        done = set(storage.list_names(self.folder(stage)))
        found = {
            task.key: receipt
            for task in tasks
            if f"{task.key}.json" in done
            and (receipt := Receipt.read(self.receipt(stage, task.key), self._root, task.result)) is not None
        }
        return receipts.sound(found, self._root, what=what, resources=resources, emit=self._emit)

    def remove(self) -> None:
        """Delete it all."""
        self._clear()
        storage.remove(self.path)

    def _clear(self) -> None:
        """Delete all but what says whose the folder is.

        The plan first: no run goes on with what an interruption here leaves.
        """
        names = storage.list_names(self.path)
        if names:
            self._mark()
        storage.remove(self.folder(PLAN))
        for name in names:
            if name != DRIVER:
                storage.remove(self.folder(name))
        for name in storage.list_names(self.folder(DRIVER)):
            if name != OWNER:
                storage.remove(self.folder(DRIVER, name))

    def _mark(self) -> None:
        storage.write_json(self.folder(DRIVER, OWNER), OWNED)


def is_work_directory(path: str) -> bool:
    """Whether a folder is a work directory, by what only we write into one.

    Args:
        path: The folder.
    """
    # Without the first: of an older release.
    return _content(storage.join(path, DRIVER, OWNER)) == OWNED or is_plan(_content(storage.join(path, PLAN)))


def is_plan(content: Any) -> bool:
    """Whether a value is the plan of a job over raw rows, or what is recorded of a finished one."""
    if not isinstance(content, dict) or not {"version", "source", "fields"} <= content.keys():
        return False
    inputs = content.get("inputs")
    return isinstance(inputs, list) and all(isinstance(file, dict) and "path" in file for file in inputs)


def _content(location: str) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none, or it is damaged."""
    try:
        return storage.read_json(location, dict[str, Any])
    except DataError:
        return None
