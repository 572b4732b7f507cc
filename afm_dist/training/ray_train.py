"""One start of Ray Train: it places the workers, connects them and registers their checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from afm_dist import storage
from afm_dist.errors import AfmError
from afm_dist.runs.events import Emit
from afm_dist.runtime import console
from afm_dist.runtime.watchdog import Watchdog, free_resources
from afm_dist.training.registration import RAY_TRAIN, Registered, Registrar
from afm_dist.training.worker import PROGRESS, Assignment, run_worker

POLL_S = 0.5
# Of one stage, so that a line stays one.
NAMED_CANDIDATES = 8
# Where each look is several requests.
POLL_OBJECT_STORE_S = 5.0


def run_once(assignment: Assignment, candidates: Sequence[str], total_rows: int, emit: Emit) -> None:
    """Train until the assignment is done, or until something goes wrong for the first time.

    Args:
        assignment: What to do.
        candidates: Names of all models of the stage, also those that are finished.
        total_rows: What all of them are trained on.
        emit: Gets the events ``checkpoint registered`` and ``no progress``.

    Raises:
        Exception: see ``failures.retry_reason``.
    """
    with _following(assignment, _in_words(candidates), total_rows, emit):
        _Trainer(assignment, candidates).fit()


def _in_words(candidates: Sequence[str]) -> str:
    more = len(candidates) - NAMED_CANDIDATES
    named = ", ".join(candidates[:NAMED_CANDIDATES])
    return f"{named} and {more} more" if more > 0 else named


class _Trainer(TorchTrainer):
    """One start of Ray Train, without restarts of its own, that ends when it is interrupted."""

    _controller: Any = None

    def __init__(self, assignment: Assignment, candidates: Sequence[str]) -> None:
        resources = assignment.resources
        filesystem, path = storage.file_system(storage.join(assignment.folder, RAY_TRAIN))
        super().__init__(
            run_worker,
            train_loop_config={"assignment": assignment},
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker=resources.ray_resources,
            ),
            run_config=RunConfig(
                name=assignment.attempt,
                storage_path=path,
                storage_filesystem=filesystem,
                # The last but one is deleted after the last one has become the one to go on from.
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                # The types are those of Ray Train v1, of which these are subclasses.
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
                callbacks=[Registrar(assignment.folder, assignment.attempt, candidates)],  # type: ignore[list-item]
            ),
            torch_config=TorchConfig(backend=resources.backend),
        )

    def _register_sigint_handler(self, controller: Any) -> None:
        # Ray's own handler lets the process end as if nothing had been left to do.
        self._controller = controller

    def fit(self) -> Any:
        """Train to the end."""
        try:
            return super().fit()
        except (KeyboardInterrupt, SystemExit):
            if self._controller is not None:
                ray.kill(self._controller)
            raise


class _Progress(TypedDict):
    """What a progress file holds."""

    rows: int


@contextmanager
def _following(assignment: Assignment, name: str, total_rows: int, emit: Emit) -> Iterator[None]:
    """Move the bar by what rank 0 writes to its progress file; tell of checkpoints, and of stalls."""
    location = storage.join(assignment.folder, PROGRESS)
    storage.write_json(location, {"rows": assignment.rows_before})
    poll_s = POLL_S if storage.is_local(location) else POLL_OBJECT_STORE_S
    stop = threading.Event()

    def follow() -> None:
        rows, registered = assignment.rows_before, assignment.start

        def waiting_for() -> str:
            began = rows != assignment.rows_before
            return free_resources() if began else f"its workers have not begun; {free_resources()}"

        watch = Watchdog(f"training {name}", waiting_for=waiting_for, emit=emit)
        with console.progress(name, total_rows, before=rows) as advance:
            ended = False
            while not ended:
                ended = stop.wait(poll_s)
                try:
                    seen = storage.read_json(location, _Progress)["rows"]
                    newest = Registered.read(assignment.folder)
                except (AfmError, OSError):
                    # The storage may fail now and then; the training itself will say so.
                    continue
                if seen != rows:
                    advance(seen - rows)
                    watch.progressed()
                    rows = seen
                if newest is not None and newest != registered:
                    emit("checkpoint registered", candidate=newest.candidate, step=newest.step)
                    registered = newest
                watch.check()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
