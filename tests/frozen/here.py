"""What makes a record quick: trainings in this process instead of Ray Train's, times that are not measured.

The only file of this folder that reaches into the library. What moves there is followed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from afm_dist.evaluation import throughput
from afm_dist.report import html
from afm_dist.runtime import machine
from afm_dist.training import fit, worker


@contextmanager
def trainings_in_this_process() -> Iterator[None]:
    """Within it, the one worker of a training is this process; what it registers is not kept."""
    alone = SimpleNamespace(
        get_world_rank=lambda: 0,
        get_world_size=lambda: 1,
        get_storage=lambda: SimpleNamespace(experiment_fs_path="", storage_filesystem=None),
    )
    train = SimpleNamespace(
        get_context=lambda: alone,
        Checkpoint=lambda *_: None,
        report=lambda *_, **__: None,
        torch=SimpleNamespace(get_device=lambda: torch.device("cpu")),
    )

    def run_once(assignment: worker.Assignment, *_: Any) -> None:
        worker.storage.write_json(worker.storage.join(assignment.folder, worker.PROGRESS), {"rows": 0})
        worker.run_worker({"assignment": assignment})

    with (
        patch.object(fit, "run_once", run_once),
        patch.object(worker, "ray", SimpleNamespace(train=train)),
        patch.object(worker, "work_with_threads", lambda count: machine.work_with_threads(1)),
    ):
        threads = torch.get_num_threads()
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def without_times() -> Iterator[None]:
    """Within it, all models are equally fast, and pages, which are for the eye, are not drawn."""

    def interleaved(
        actions: Mapping[str, Callable[[], object]], rounds: int, **_: Any
    ) -> dict[str, Sequence[float]]:
        return {name: [1.0] * rounds for name in actions}

    with (
        patch.object(throughput, "time_interleaved", interleaved),
        patch.object(html, "to_html", lambda document: ""),
    ):
        yield
