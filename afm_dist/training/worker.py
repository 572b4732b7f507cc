"""What each Ray Train worker runs: one or several models, one after the other, same recipe.

A start of Ray Train costs seconds, so models that share a recipe share a worker group. Each
result is committed when it is finished.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
from ray.train import CheckpointUploadMode
from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import StageError
from afm_dist.runtime.machine import work_with_threads
from afm_dist.runtime.resources import TrainingResources
from afm_dist.training.exchange.exchange import ExchangeConfig
from afm_dist.training.kept import KeptWeights
from afm_dist.training.loop import Trainer, Worker
from afm_dist.training.recipe import Recipe
from afm_dist.training.registration import RAY_TRAIN, Registered
from afm_dist.training.schedule import rows_seen, total_steps
from afm_dist.training.state import State

HISTORY = "history.json"
PROGRESS = "progress.json"
PROGRESS_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to train.

    Attributes:
        name: For messages and the report.
        source: Checkpoint it starts from.
        output: Where the best weights (``checkpoint/``) and the history go.
        teacher: Checkpoint whose predictions are learned from, for a recipe with a ``distill_weight``.
            The same for all candidates of a round, the control included: the uncompressed model as it
            enters the round, which is what the control starts from. So for the control the soft labels
            only hold it back where it is, as they hold the compressed model where that came from.
    """

    name: str
    source: str
    output: str
    teacher: str | None = None

    @property
    def checkpoint(self) -> str:
        """Checkpoint directory of the kept weights, when training is finished."""
        return storage.join(self.output, "checkpoint")

    @property
    def history(self) -> str:
        """Where the history is committed, when training is finished."""
        return storage.join(self.output, HISTORY)

    @property
    def finished(self) -> bool:
        """Whether training is finished."""
        return storage.exists(self.history)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Everything a worker needs to know.

    Attributes:
        candidates: Models to train, in order.
        start: The checkpoint of the first of them to go on from; None: from its source.
        data: Dataset directory.
        recipe: The same for all.
        exchange: How gradients travel between the workers.
        evaluate_first: Whether the state before the first step competes.
        checkpoint_s: Seconds after which a checkpoint is taken, if there was no evaluation.
        resources: What each worker has.
        folder: Of the stage.
        attempt: Name of this start of Ray Train.
        rows_before: Rows that need not be trained on again, of all candidates, for the progress.
    """

    candidates: Sequence[Candidate]
    start: Registered | None
    data: str
    recipe: Recipe
    exchange: ExchangeConfig
    evaluate_first: bool
    checkpoint_s: float
    resources: TrainingResources
    folder: str
    attempt: str
    rows_before: int


def run_worker(config: dict[str, Any]) -> None:
    """Train every candidate (called by Ray Train on each worker)."""
    assignment: Assignment = config["assignment"]
    work_with_threads(assignment.resources.cpus)
    if not storage.exists(storage.join(assignment.folder, PROGRESS)):
        raise StageError(
            f"{assignment.folder}: not seen by the worker on {socket.gethostname()}; give --output a folder, "
            "or a URI, that all nodes share"
        )
    context = ray.train.get_context()
    worker = Worker(rank=context.get_world_rank(), world_size=context.get_world_size())
    manifest = Manifest.load(assignment.data)
    steps = total_steps(assignment.recipe, manifest)
    progress = _Progress(assignment, worker, rows_seen(steps, assignment.recipe, manifest))
    start = assignment.start
    for candidate in assignment.candidates:
        state = None
        if start is not None:
            location = start.location(assignment.folder)
            state = State.read(location, candidate=candidate.name, step=start.step, digest=start.digest)
            if any(start.exchange_digests):
                state = state.with_exchange_state(location, worker.rank, start.exchange_digests[worker.rank])
        _Training(assignment, candidate, manifest, worker, progress).run(state)
        progress.finished()
        start = None


class _Training:
    """One candidate on one worker, and what its trainer calls."""

    def __init__(
        self,
        assignment: Assignment,
        candidate: Candidate,
        manifest: Manifest,
        worker: Worker,
        progress: _Progress,
    ) -> None:
        self._assignment = assignment
        self._candidate = candidate
        self._manifest = manifest
        self._worker = worker
        self._progress = progress
        self._kept = KeptWeights(candidate.output, load_config(candidate.source))
        self._saved = time.monotonic()

    def run(self, start: State | None) -> None:
        """Train it, and commit what is kept."""
        recipe, device = self._assignment.recipe, ray.train.torch.get_device()
        teacher = None
        if recipe.distill_weight > 0 and self._candidate.teacher is not None:
            teacher = from_pretrained(self._candidate.teacher).to(device)
        trainer = Trainer(
            from_pretrained(self._candidate.source).to(device),
            self._manifest,
            recipe,
            worker=self._worker,
            teacher=teacher,
            exchange=self._assignment.exchange,
        )
        history = trainer.run(self, start=start, evaluate_first=self._assignment.evaluate_first)
        if self._worker.rank == 0:
            self._kept.commit(history.kept_step, self._candidate.checkpoint)
            storage.write_sealed_json(self._candidate.history, history.to_json())

    def keep(self, model: nn.Module, step: int) -> None:
        """See ``Callbacks``."""
        if self._worker.rank == 0:
            registered = Registered.read(self._assignment.folder)
            mine = registered is not None and registered.candidate == self._candidate.name
            self._kept.add(model, step, registered if mine else None)

    def progress(self, rows: int) -> None:
        """See ``Callbacks``."""
        self._progress.add(rows)

    def checkpoint_due(self) -> bool:
        """See ``Callbacks``."""
        # The clock of one worker decides for all.
        return self._worker.rank == 0 and time.monotonic() - self._saved >= self._assignment.checkpoint_s

    def save(self, state: State) -> None:
        """See ``Callbacks``.

        What the workers write into one folder is a checkpoint when all have reported: see ``Registrar``.
        """
        resources, rank = self._assignment.resources, self._worker.rank
        attempt, name = self._assignment.attempt, f"checkpoint-{self._candidate.name}-{state.step:08d}"
        folder = storage.join(self._assignment.folder, RAY_TRAIN, attempt, name)
        metrics = {
            "candidate": self._candidate.name,
            "step": state.step,
            "kept_step": state.history.kept_step,
            "threads": resources.cpus,
            "device": resources.device,
            "workers": state.workers,
            "exchange": state.exchange,
            "exchange_digest": state.write_exchange_state(folder, rank),
        }
        if rank == 0:
            metrics["digest"] = state.write(folder, candidate=self._candidate.name)
            place = ray.train.get_context().get_storage()
            checkpoint = ray.train.Checkpoint(f"{place.experiment_fs_path}/{name}", place.storage_filesystem)
            # It lies where Ray Train would have copied it, so there is nothing left to upload.
            ray.train.report(metrics, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
        else:
            ray.train.report(metrics)
        self._saved = time.monotonic()


class _Progress:
    """Rank 0 writes the rows done to a small file that the driver reads now and then."""

    def __init__(self, assignment: Assignment, worker: Worker, rows_of_candidate: int) -> None:
        self._location = storage.join(assignment.folder, PROGRESS)
        self._writes = worker.rank == 0
        self._rows_of_candidate = rows_of_candidate
        self._rows = assignment.rows_before
        self._written = float("-inf")

    def add(self, rows: int) -> None:
        self._rows += rows
        now = time.monotonic()
        if self._writes and now - self._written >= PROGRESS_INTERVAL_S:
            self._written = now
            storage.write_json(self._location, {"rows": self._rows})

    def finished(self) -> None:
        """Count the rows that a candidate, stopped early, did not need."""
        self._rows = -(-self._rows // self._rows_of_candidate) * self._rows_of_candidate
