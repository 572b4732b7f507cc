"""Training on Ray Train, followed and started again from the driver.

Ray Train places the workers, connects them and registers their checkpoints. Starting again after a
failure is done here and not left to it: it would repeat every error alike, also one that data or
options cause; it would wait in silence for CPUs that died with their node; and nobody would hear
of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from afm_dist import storage
from afm_dist.checkpoint.config import check_schema, load_config
from afm_dist.checkpoint.files import check_files, size_on_disk
from afm_dist.dataset.labels import check_labels
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError, StageError
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import console
from afm_dist.runtime.cluster import ensure_ray, training_resources
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions, TrainingResources
from afm_dist.training.exchange.exact import EXACT
from afm_dist.training.exchange.exchange import ExchangeConfig, check_exchange
from afm_dist.training.failures import retry_reason
from afm_dist.training.history import History
from afm_dist.training.ray_train import run_once
from afm_dist.training.recipe import CHECKPOINT_MINUTES, Recipe, check_checkpoint_minutes
from afm_dist.training.registration import RAY_TRAIN, REGISTERED, Registered
from afm_dist.training.schedule import rows_seen, total_steps
from afm_dist.training.worker import PROGRESS, Assignment, Candidate

# In a row, without a new checkpoint between them.
MAX_RESTARTS = 3
WAIT_FOR_NODES_S = 600.0
POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """How many workers train together, on what, and how they exchange gradients.

    Attributes:
        workers: Data-parallel workers; the CPUs of each node are shared out among them.
        options: Whether they use GPUs.
        checkpoint_minutes: A checkpoint is taken after each evaluation, and when the last one is so
            old. When they are taken does not change the result.
        exchange: How gradients travel between the workers.

    Raises:
        OptionError: a time that is none.
    """

    workers: int = 1
    options: ResourceOptions = AUTOMATIC
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    exchange: ExchangeConfig = EXACT

    def __post_init__(self) -> None:
        check_checkpoint_minutes(self.checkpoint_minutes)


def fit(
    candidates: Sequence[Candidate],
    manifest: Manifest,
    recipe: Recipe,
    *,
    folder: str,
    group: WorkerGroup = WorkerGroup(),
    fine_tuning: bool = False,
    emit: Emit = no_events,
) -> dict[str, History]:
    """Train models on Ray Train, one after the other in one group of workers.

    Args:
        candidates: What to train and where the results go.
        manifest: The dataset.
        recipe: The same for all candidates, with the same order of rows.
        folder: Of the stage, on storage that all workers share; an interrupted training goes on
            from what lies there.
        group: The workers.
        fine_tuning: Whether the state before the first step competes for being kept.
        emit: Gets the events.

    Returns:
        By candidate name.

    Raises:
        OptionError: more workers than fit on the nodes, other workers or another exchange than what an
            interrupted training can go on with, or a recipe that distils without a teacher.
        DataError: a split without rows of both labels, what a worker found wrong with its data, or a
            teacher of another schema.
        StageError: training failed beyond its restarts.
    """
    check_labels(manifest)
    _check_teachers(candidates, manifest, recipe)
    folder = storage.absolute(folder)
    _check_finished(candidates)
    rows = rows_seen(total_steps(recipe, manifest), recipe, manifest)
    failures = 0
    while waiting := [candidate for candidate in candidates if not candidate.finished]:
        # The passes after the training share the model through the object store of this Ray.
        ensure_ray(object_bytes=max(size_on_disk(candidate.source) for candidate in waiting))
        start = _last_checkpoint(folder, waiting[0])
        step = 0 if start is None else start.step
        resources = _resources(group, start, emit, again=failures > 0)
        assignment = Assignment(
            candidates=waiting,
            start=start,
            data=storage.absolute(manifest.location),
            recipe=recipe,
            exchange=group.exchange,
            evaluate_first=fine_tuning,
            checkpoint_s=60 * group.checkpoint_minutes,
            resources=resources,
            folder=folder,
            attempt=_clear(folder, start),
            rows_before=(len(candidates) - len(waiting)) * rows + rows_seen(step, recipe, manifest),
        )
        emit("training started", candidate=waiting[0].name, step=step, **asdict(resources))
        try:
            run_once(assignment, [candidate.name for candidate in candidates], len(candidates) * rows, emit)
        except Exception as error:
            went_on = waiting[0].finished or _last_checkpoint(folder, waiting[0]) != start
            failures = 1 if went_on else failures + 1
            _warn_of_restart(error, failures, emit)
        else:
            if unfinished := [candidate.history for candidate in waiting if not candidate.finished]:
                raise StageError(f"training ended without {unfinished[0]}; please report this")
    for rest in (RAY_TRAIN, PROGRESS, REGISTERED):
        storage.remove(storage.join(folder, rest))
    return {candidate.name: History.read(candidate.history) for candidate in candidates}


def _check_finished(candidates: Sequence[Candidate]) -> None:
    """Check that what an interrupted training finished is as it was left, before hours go by.

    Raises:
        DataError: a history or a checkpoint was altered.
    """
    for candidate in candidates:
        if candidate.finished:
            History.read(candidate.history)
            check_files(candidate.checkpoint)


def _check_teachers(candidates: Sequence[Candidate], manifest: Manifest, recipe: Recipe) -> None:
    """Refuse soft labels that nobody gives, or that are of other fields.

    Raises:
        OptionError: a candidate has no teacher.
        DataError: a teacher was trained on another schema.
    """
    if recipe.distill_weight == 0:
        return
    for candidate in candidates:
        if candidate.teacher is None:
            raise OptionError(
                f"distill_weight {recipe.distill_weight}: {candidate.name} has no teacher; give it the "
                "checkpoint of the uncompressed model"
            )
    for teacher in {candidate.teacher for candidate in candidates if candidate.teacher is not None}:
        check_schema(load_config(teacher), manifest, checkpoint=teacher)


def _warn_of_restart(error: Exception, failures: int, emit: Emit) -> None:
    """Warn why the training starts again.

    Raises:
        Exception: it must not, because of what went wrong, or because it did too often.
    """
    reason = retry_reason(error)
    emit("training lost", reason=reason, failures=failures)
    if failures > MAX_RESTARTS:
        raise StageError(
            f"{reason}; that was {failures} times without a new checkpoint between them. Look into Ray's "
            "logs of the workers, then run the same command to go on"
        ) from error
    console.warn(f"{reason}; starting again")


def _last_checkpoint(folder: str, candidate: Candidate) -> Registered | None:
    """Find the checkpoint to go on from; None when a candidate has none yet.

    Raises:
        StageError: it was registered, but is gone.
    """
    registered = Registered.read(folder)
    if registered is None or registered.candidate != candidate.name:
        return None
    location = registered.location(folder)
    if not storage.exists(location):
        raise StageError(
            f"{location}: the checkpoint of {candidate.name} at step {registered.step} was registered, but "
            f"is gone; restore it, or delete {folder} to train anew"
        )
    return registered


def _resources(group: WorkerGroup, start: Registered | None, emit: Emit, *, again: bool) -> TrainingResources:
    """Compute what each worker gets: with as many threads as the training began with, if possible.

    Raises:
        OptionError: the training cannot go on with this group.
    """
    if start is not None:
        _check_group(group, start)
    options, workers = group.options, group.workers
    resources = _wait_for_nodes(options, workers, emit) if again else training_resources(options, workers)
    if start is None:
        return resources
    threads = min(resources.cpus, start.threads)
    console.info(f"  {start.candidate}: going on from step {start.step} with {threads} threads per worker")
    if (threads, resources.device) != (start.threads, start.device):
        console.warn(
            f"the training began with {start.threads} threads per worker on {start.device}, and goes on with "
            f"{threads} on {resources.device}: the last digits of the weights may become others"
        )
    return replace(resources, cpus=threads)


def _check_group(group: WorkerGroup, start: Registered) -> None:
    """Refuse workers that cannot go on with a training; say it where they end with other bits.

    Raises:
        OptionError: each of those before has a state of its own, or they exchange gradients otherwise.
    """
    check_exchange(
        group.exchange.name,
        group.workers,
        saved=start.exchange,
        saved_workers=start.workers,
        stateful=any(start.exchange_digests),
    )
    if group.workers != start.workers:
        console.warn(
            f"the training of {start.candidate} began with {start.workers} workers, and goes on with "
            f"{group.workers}: the bits of the weights may become others"
        )


def _wait_for_nodes(options: ResourceOptions, workers: int, emit: Emit) -> TrainingResources:
    """Compute what each worker gets of the nodes that are left, or of those that come.

    Raises:
        StageError: none came for a long time.
    """
    ends = time.monotonic() + WAIT_FOR_NODES_S
    warned = False
    while True:
        try:
            return training_resources(options, workers)
        except OptionError as error:
            if time.monotonic() > ends:
                raise StageError(
                    f"waited {WAIT_FOR_NODES_S:.0f} s for nodes: {error}. Then run the same command to go on"
                ) from error
            if not warned:
                console.warn(f"waiting for nodes: {error}")
                emit("waiting for nodes", reason=str(error))
            warned = True
            time.sleep(POLL_S)


def _clear(folder: str, start: Registered | None) -> str:
    """Delete what earlier starts of Ray Train left, besides the checkpoint to go on from; a new name."""
    root = storage.join(folder, RAY_TRAIN)
    attempts = storage.list_names(root)
    for attempt in attempts:
        if start is None or attempt != start.attempt:
            storage.remove(storage.join(root, attempt))
            continue
        for name in storage.list_names(storage.join(root, attempt)):
            if name != start.checkpoint:
                storage.remove(storage.join(root, attempt, name))
    last = max((int(attempt.rpartition("-")[2]) for attempt in attempts), default=0)
    return f"attempt-{last + 1:03d}"
