"""Starting Ray Train from the driver and following it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from afm_dist import console, storage
from afm_dist.checkpoint import size_on_disk
from afm_dist.cluster import ensure_ray, training_resources
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import AfmError, StageError
from afm_dist.resources import ResourceOptions
from afm_dist.training.loop import History
from afm_dist.training.recipe import Recipe
from afm_dist.training.worker import PROGRESS, Assignment, Candidate, run_worker

MAX_FAILURES = 3
POLL_S = 0.5
RAY_TRAIN = "ray_train"
CPUS_ONLY = ResourceOptions(use_gpu="never")


def fit(
    candidates: Sequence[Candidate],
    manifest: Manifest,
    recipe: Recipe,
    *,
    folder: str,
    workers: int = 1,
    options: ResourceOptions = CPUS_ONLY,
    fine_tuning: bool = False,
) -> dict[str, History]:
    """Train models on Ray Train, one after the other in one group of workers.

    Args:
        candidates: What to train and where the results go.
        manifest: The dataset.
        recipe: The same for all candidates, with the same order of rows.
        folder: Of the stage, on storage that all workers share; an interrupted training goes on
            from what lies there.
        workers: Data-parallel workers; the CPUs of each node are shared out among them.
        options: Whether they use GPUs.
        fine_tuning: Whether the state before the first step competes for being kept.

    Returns:
        By candidate name.

    Raises:
        OptionError: more workers than fit on the nodes.
        DataError: what a worker found wrong with its data.
        StageError: training failed beyond its restarts.
    """
    finished = [candidate for candidate in candidates if storage.exists(candidate.history)]
    waiting = [candidate for candidate in candidates if candidate not in finished]
    manifest.shards("validation")
    if waiting:
        # The passes after the training share the model through the object store of this Ray.
        ensure_ray(object_bytes=max(size_on_disk(candidate.source) for candidate in waiting))
        resources = training_resources(options, workers)
        assignment = Assignment(
            candidates=tuple(candidates),
            data=storage.absolute(manifest.location),
            recipe=recipe,
            evaluate_first=fine_tuning,
            resources=resources,
            folder=storage.absolute(folder),
        )
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"assignment": assignment},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker=resources.ray_resources,
            ),
            run_config=RunConfig(
                name=RAY_TRAIN,
                storage_path=storage.absolute(folder),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
            torch_config=TorchConfig(backend=resources.backend),
        )
        total = len(candidates) * recipe.epochs * manifest.rows("train")
        what = ", ".join(candidate.name for candidate in waiting)
        with console.progress(what, total) as advance, _following(folder, advance):
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise _reported(error) from error
    histories = {}
    for candidate in candidates:
        history = History.from_json(storage.read_json(candidate.history))
        if not history.finished:
            raise StageError(f"{candidate.history}: training of {candidate.name} did not finish")
        histories[candidate.name] = history
    storage.remove(storage.join(folder, RAY_TRAIN))
    storage.remove(storage.join(folder, PROGRESS))
    return histories


def _reported(error: TrainingFailedError) -> Exception:
    """What a stranger should see of a failed training."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause = getattr(failure, "cause", None) or failure
        for candidate in (failure, cause, getattr(cause, "cause", None)):
            if isinstance(candidate, AfmError) and not isinstance(candidate, ray.exceptions.RayTaskError):
                return candidate
    first = next((str(failure) for failure in failures.values()), str(error))
    last_line = (first.strip().splitlines() or ["no message"])[-1]
    return StageError(f"training failed after {MAX_FAILURES} restarts: {last_line}")


@contextmanager
def _following(folder: str, advance: object) -> Iterator[None]:
    """Move the bar by what rank 0 writes to its progress file."""
    assert callable(advance)
    stop = threading.Event()
    location = storage.join(folder, PROGRESS)
    storage.remove(location)

    def follow() -> None:
        seen = 0
        while not stop.wait(POLL_S):
            if storage.exists(location):
                rows = int(storage.read_json(location)["rows"])
                advance(rows - seen)
                seen = rows

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
