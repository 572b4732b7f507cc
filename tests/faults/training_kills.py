"""Training workers that note every batch they train on, and kill themselves at chosen points."""

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

import ray.train

from afm_dist.dataset.batch import Batch
from afm_dist.training import loop, worker
from afm_dist.training.registration import Registered

Moment = Literal["before step", "checkpoint written", "checkpoint reported"]


@dataclass(frozen=True)
class Kill:
    """``kill -9`` of the worker of a rank, once.

    Attributes:
        rank: Which worker.
        moment: At what point of it.
        step: Of which step.
        registered: Wait until the checkpoint of this step is registered.
    """

    rank: int
    moment: Moment
    step: int
    registered: int | None = None


@dataclass(frozen=True)
class Seen:
    """A batch that a worker trained on."""

    attempt: str
    rank: int
    step: int
    batch: str


def noting(notes: Path, kills: Sequence[Kill] = ()) -> Callable[[dict[str, Any]], None]:
    """What each worker runs instead of ``run_worker``.

    Args:
        notes: Folder for what was seen.
        kills: What is to happen.
    """

    def run(config: dict[str, Any]) -> None:
        assignment: worker.Assignment = config["assignment"]
        rank = ray.train.get_context().get_world_rank()
        seen = notes / f"{assignment.attempt}.{rank}.jsonl"
        train_step, report = loop.train_step, ray.train.report

        def wait_for(step: int) -> None:
            while (registered := Registered.read(assignment.folder)) is None or registered.step != step:
                time.sleep(0.01)

        def perhaps_die(moment: Moment, step: int) -> None:
            for number, kill in enumerate(kills):
                if (kill.rank, kill.moment, kill.step) != (rank, moment, step):
                    continue
                if (notes / f"killed-{number}").exists():
                    continue
                if kill.registered is not None:
                    wait_for(kill.registered)
                (notes / f"killed-{number}").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        def noting_step(model: Any, optimizer: Any, batch: Batch, *rest: Any, **options: Any) -> Any:
            perhaps_die("before step", optimizer.steps)
            with seen.open("a") as file:
                file.write(json.dumps([optimizer.steps, _digest(batch)]) + "\n")
            return train_step(model, optimizer, batch, *rest, **options)

        def watched_report(metrics: dict[str, Any], *rest: Any, **options: Any) -> None:
            perhaps_die("checkpoint written", metrics["step"])
            report(metrics, *rest, **options)
            perhaps_die("checkpoint reported", metrics["step"])

        loop.train_step, ray.train.report = noting_step, watched_report
        worker.run_worker(config)

    return run


def _digest(batch: Batch) -> str:
    digest = hashlib.sha256()
    for tensor in (batch.ids, batch.numeric, batch.labels):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def read_notes(notes: Path) -> list[Seen]:
    """All that the workers of all attempts trained on."""
    return [
        Seen(path.name.partition(".")[0], int(path.suffixes[0][1:]), *json.loads(line))
        for path in sorted(notes.glob("attempt-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
