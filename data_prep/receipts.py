"""Receipts of finished tasks: what each returned, and the digests of the files that it wrote.

A receipt is written after the files. Before a run goes on from one it compares the files with their
digests; where one differs, the task is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypedDict

import ray

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.runs.events import Emit
from afm_dist.runtime import console
from afm_dist.runtime.cluster import task_slots
from afm_dist.runtime.resources import TaskResources
from afm_dist.runtime.tasks import run_tasks

FIX = "its task is done again"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is left of a finished task.

    Attributes:
        result: What it returned, read back.
        files: SHA-256 of the files it wrote, by path within the folder of the job.
    """

    result: Any
    files: Mapping[str, str]

    @classmethod
    def read(cls, location: str, folder: str, kind: Any) -> Receipt | None:
        """None where there is none, or a damaged one: then the task is done again.

        Args:
            location: Of the receipt.
            folder: In which all files of the job lie.
            kind: What the task returns.
        """
        with suppress(DataError):
            content = storage.read_sealed_json(location, _Content, fix=FIX)
            storage.check_inside(folder, content["files"], source=location)
            return cls(
                result=storage.as_typed(content["result"], kind, source=location, fix=FIX),
                files=content["files"],
            )
        return None


class _Content(TypedDict):
    """What a receipt holds."""

    result: Any
    files: dict[str, str]


def leave(location: str, folder: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Do a task and write its receipt; returns its result.

    Args:
        location: Of the receipt.
        folder: In which all files of the job lie.
        function: The task.
        arguments: Its arguments.
    """
    with storage.recording_digests() as digests:
        result = function(*arguments)
    files = {storage.relative(path, folder): digest for path, digest in digests.items()}
    storage.write_sealed_json(location, {"result": result, "files": files})
    return result


def sound(
    receipts: Mapping[str, Receipt], folder: str, *, what: str, resources: TaskResources, emit: Emit
) -> dict[str, Any]:
    """The results of the tasks whose files are as they were written, by key; on Ray, as it reads them all.

    Args:
        receipts: By key of the task.
        folder: In which all files of the job lie.
        what: Name of the stage, for people.
        resources: What each look gets.
        emit: Gets the events.
    """
    altered: dict[str, str] = {}
    check = _check_files.options(name=f"checking {what}", **resources.ray_options)

    def finished(key: str, fault: str | None) -> None:
        if fault is not None:
            altered[key] = fault

    run_tasks(
        lambda key: check.remote(folder, receipts[key].files),
        [key for key, receipt in receipts.items() if receipt.files],
        finished=finished,
        what=f"checking {what}",
        slots=lambda: task_slots(resources),
        emit=emit,
    )
    for key, fault in altered.items():
        console.warn(f"{what}: {fault}")
        emit("altered file", what=what, task=key, reason=fault)
    return {key: receipt.result for key, receipt in receipts.items() if key not in altered}


@ray.remote(max_retries=0)
def _check_files(folder: str, files: Mapping[str, str]) -> str | None:
    """What is wrong with some files; None: nothing."""
    try:
        storage.Checksums(folder=folder, sha256=files, again=FIX).check_all()
    except DataError as error:
        return str(error)
    return None
