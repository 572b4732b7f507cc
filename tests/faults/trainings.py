"""What the fault tests of the training run, and how they see which worker trained on what."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import ray.train
import torch

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.models import build_model
from afm_dist.training import loop, ray_train, worker
from afm_dist.training.fit import WorkerGroup, fit
from afm_dist.training.history import History
from afm_dist.training.recipe import Recipe
from afm_dist.training.registration import Registered
from afm_dist.training.worker import Candidate
from tests.small_dataset import FIELDS, write_dataset

# 32 steps, evaluations after every fourth.
RECIPE = Recipe(epochs=2, batch_size=64, learning_rate=0.02, evaluations_per_epoch=4, patience=100)
STEPS = 32
SHAPE = {"embedding_dim": 4, "hidden": (16, 8), "dropout": 0.3}

Moment = Literal["before the step", "checkpoint written", "checkpoint reported"]


@dataclass(frozen=True, kw_only=True)
class Kill:
    """``kill -9`` of the worker of a rank, once.

    Attributes:
        rank: Which worker.
        moment: At what point of it.
        step: Of which step.
        candidate: Of which model.
        registered: Wait until the checkpoint of this step is registered.
        by_itself: Otherwise it hangs there until it is killed from outside, with its node.
    """

    rank: int = 0
    moment: Moment
    step: int
    candidate: str = "model"
    registered: int | None = None
    by_itself: bool = True


@dataclass(frozen=True)
class Seen:
    """A batch that a worker trained on."""

    attempt: int
    rank: int
    candidate: str
    step: int
    batch: str


@dataclass(frozen=True)
class Trained:
    """A finished training and all that happened in it."""

    folder: Path
    histories: dict[str, History]
    events: list[dict[str, Any]]
    seen: list[Seen]

    def weights(self, name: str = "model") -> bytes:
        return (self.folder / name / "checkpoint" / "model.safetensors").read_bytes()

    def happened(self, what: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == what]

    def steps(self, attempt: int, rank: int = 0, candidate: str = "model") -> list[int]:
        """What a worker did in one start of Ray Train."""
        which = (attempt, rank, candidate)
        return [seen.step for seen in self.seen if (seen.attempt, seen.rank, seen.candidate) == which]

    def batches(self, candidate: str = "model") -> dict[tuple[int, int], str]:
        """What each worker trained on in each step that counts: the last time it was done."""
        return {(seen.step, seen.rank): seen.batch for seen in self.seen if seen.candidate == candidate}

    def left(self) -> set[str]:
        """Files in the folder, besides the notes of the test."""
        files = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        return {path for path in files if not path.startswith("notes/")}


class Bench:
    """A small log and an untrained model.

    Args:
        folder: Where they are written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = write_dataset(folder / "data")
        self.source = str(folder / "source")
        self._count = 0
        torch.manual_seed(0)
        config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPE, fields=FIELDS)
        save_pretrained(build_model("deepfm", FIELDS, SHAPE), self.source, config)

    def place(self) -> Path:
        """A new folder for a training."""
        self._count += 1
        folder = self.folder / f"training-{self._count}"
        (folder / "notes").mkdir(parents=True)
        return folder

    def train(self, *kills: Kill, **options: Any) -> Trained:
        """Train in a new folder; see ``train``."""
        return train(self.place(), self.source, self.manifest, kills, **options)


def train(
    folder: Path,
    source: str,
    manifest: Manifest,
    kills: Sequence[Kill] = (),
    *,
    names: Sequence[str] = ("model",),
    recipe: Recipe = RECIPE,
    **options: Any,
) -> Trained:
    """Train, or go on training, in this process as the driver.

    Args:
        folder: Of the stage, from ``place``.
        source: Checkpoint of the untrained model.
        manifest: The log.
        kills: What is to happen.
        names: Of the candidates, all from the same source.
        recipe: Of all of them.
        options: Of ``fit``.
    """
    notes = folder / "notes"
    candidates = [Candidate(name=name, source=source, output=str(folder / name)) for name in names]
    with (
        mock.patch.object(ray_train, "run_worker", noting(notes, kills)),
        mock.patch.dict(os.environ, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.25", RAY_TRAIN_METRICS_ENABLED="0"),
    ):
        histories = fit(
            candidates,
            manifest,
            recipe,
            folder=str(folder),
            emit=lambda what, /, **details: _append(notes / "events", {"event": what, **details}),
            **options,
        )
    return Trained(folder, histories, read_events(folder), [Seen(*line) for line in _read(notes, "seen-*")])


def train_with(folder: Path, source: str, manifest: Manifest, kills: Sequence[Kill], workers: int) -> Trained:
    """``train``, for a driver of its own."""
    return train(folder, source, manifest, kills, group=WorkerGroup(workers=workers))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """What was heard of a training so far."""
    return _read(folder / "notes", "events")


def noting(notes: Path, kills: Sequence[Kill] = ()) -> Callable[[dict[str, Any]], None]:
    """What each worker runs instead of ``run_worker``: it notes every batch, and dies where it is told to.

    Args:
        notes: Folder for what was seen.
        kills: What is to happen.
    """

    def run(config: dict[str, Any]) -> None:
        assignment: worker.Assignment = config["assignment"]
        rank = ray.train.get_context().get_world_rank()
        (notes / f"node-{rank}").write_text(ray.get_runtime_context().get_node_id())
        attempt = int(assignment.attempt.rpartition("-")[2])
        waiting = iter(assignment.candidates)
        candidate = ""
        trainer, train_step, report = worker.Trainer, loop.train_step, ray.train.report

        def perhaps_die(moment: Moment, step: int) -> None:
            for number, kill in enumerate(kills):
                if (kill.rank, kill.moment, kill.step, kill.candidate) != (rank, moment, step, candidate):
                    continue
                if (notes / f"killed-{number}").exists():
                    continue
                while kill.registered is not None and _registered(assignment.folder) != kill.registered:
                    time.sleep(0.01)
                (notes / f"killed-{number}").touch()
                while not kill.by_itself:
                    time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)

        def noting_trainer(*arguments: Any, **options: Any) -> loop.Trainer:
            nonlocal candidate
            candidate = next(waiting).name
            return trainer(*arguments, **options)

        def noting_step(model: Any, optimizer: Any, batch: Batch, *rest: Any, **options: Any) -> Any:
            perhaps_die("before the step", optimizer.steps)
            seen = [attempt, rank, candidate, optimizer.steps, _digest(batch)]
            _append(notes / f"seen-{attempt:03d}-{rank}", seen)
            return train_step(model, optimizer, batch, *rest, **options)

        def noting_report(metrics: dict[str, Any], *rest: Any, **options: Any) -> None:
            perhaps_die("checkpoint written", metrics["step"])
            report(metrics, *rest, **options)
            perhaps_die("checkpoint reported", metrics["step"])

        worker.Trainer, loop.train_step, ray.train.report = noting_trainer, noting_step, noting_report
        worker.run_worker(config)

    return run


def _registered(folder: str) -> int | None:
    registered = Registered.read(folder)
    return None if registered is None else registered.step


def _digest(batch: Batch) -> str:
    digest = hashlib.sha256()
    for tensor in (batch.ids, batch.numeric, batch.labels):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _append(path: Path, line: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _read(notes: Path, pattern: str) -> list[Any]:
    return [
        json.loads(line) for path in sorted(notes.glob(pattern)) for line in path.read_text().splitlines()
    ]
