"""A preparation without Ray: its tasks run here, one after the other, and patches reach them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from afm_dist.runtime import cluster
from data_prep import receipts, work
from data_prep.sources import synthetic

_RUN_TASK, _CHECK_FILES = work._run_task, receipts._check_files


class _Direct:
    """Takes the place of a Ray task."""

    def __init__(self, task: Any) -> None:
        self._function = task._function

    def options(self, **_: Any) -> _Direct:
        return self

    def remote(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _one_after_the_other(
    submit: Callable[[Any], Any], items: list[Any], *, finished: Callable[[Any, Any], None], **_: Any
) -> None:
    for item in items:
        finished(item, submit(item))


@contextmanager
def in_this_process() -> Iterator[pytest.MonkeyPatch]:
    """Within it, ``prepare`` needs no Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLARS_MAX_THREADS", "1")
        # It only matters when a machine loses power, and costs a quarter of the time.
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(ray, "put", lambda value: value)
        patch.setattr(work, "_run_task", _Direct(_RUN_TASK))
        patch.setattr(receipts, "_check_files", _Direct(_CHECK_FILES))
        patch.setattr(receipts, "run_tasks", _one_after_the_other)
        patch.setattr(cluster, "ensure_ray", lambda: None)
        patch.setattr(work, "run_tasks", _one_after_the_other)
        patch.setattr(synthetic, "run_tasks", _one_after_the_other)
        yield patch
