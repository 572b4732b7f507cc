"""The checkpoint that a training goes on from: the last one that Ray Train registered.

A worker's ``report`` returns before Ray Train's controller has taken note of the checkpoint, and a
worker that dies in between leaves one that nobody knows of. So a restart asks neither what lies in
the folder nor what a worker believes, but what was registered; and that is written down here, in
one file that is replaced whole, by the controller itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray.train import Checkpoint, UserCallback

from afm_dist import storage
from afm_dist.errors import StageError
from afm_dist.training.history import FIX

REGISTERED = "registered.json"
RAY_TRAIN = "ray_train"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """The checkpoint that was registered last, and what it is a checkpoint of.

    Attributes:
        candidate: Name of the model that was being trained.
        step: Steps it had done.
        kept_step: Step whose weights were the best until then.
        threads: Of each worker.
        device: On which the model ran.
        digest: Of the state in it.
        workers: How many trained.
        exchange: Name of the exchange of gradients.
        exchange_digests: By rank, of the state of the worker's exchange; "" where it has none.
        attempt: The start of Ray Train that wrote it.
        checkpoint: Name of its folder.
    """

    candidate: str
    step: int
    kept_step: int
    threads: int
    device: str
    digest: str
    workers: int
    exchange: str
    exchange_digests: list[str]
    attempt: str
    checkpoint: str

    @classmethod
    def read(cls, folder: str) -> Registered | None:
        """Read the checkpoint of the stage that works in a folder; None before the first one.

        Raises:
            DataError: the note is damaged, or names a checkpoint elsewhere.
        """
        location = storage.join(folder, REGISTERED)
        if not storage.exists(location):
            return None
        registered = storage.read_sealed_json(location, cls, fix=FIX)
        storage.check_inside(
            storage.join(folder, RAY_TRAIN),
            [registered.attempt, f"{registered.attempt}/{registered.checkpoint}"],
            source=location,
        )
        return registered

    def write(self, folder: str) -> None:
        """Replace the note of the stage that works in a folder."""
        storage.write_sealed_json(storage.join(folder, REGISTERED), asdict(self))

    def location(self, folder: str) -> str:
        """Return where the checkpoint lies."""
        return storage.join(folder, RAY_TRAIN, self.attempt, self.checkpoint)


class Registrar(UserCallback):
    """Takes note of each checkpoint in the process, and at the moment, in which it is registered.

    Ray Train calls it in its controller, right after the checkpoint has become the one that it
    knows. What is reported has to be further on than what was registered before: a training that
    had silently begun anew would end here.

    Args:
        folder: Of the stage.
        attempt: This start of Ray Train.
        candidates: Names in the order in which they are trained.
    """

    def __init__(self, folder: str, attempt: str, candidates: Sequence[str]) -> None:
        self._folder = folder
        self._attempt = attempt
        self._candidates = list(candidates)

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Register the checkpoint: called by Ray Train when all workers have reported.

        Raises:
            StageError: the training went back behind what was registered.
        """
        del run_context
        if checkpoint is None:
            return
        name = checkpoint.path.rstrip("/").rpartition("/")[2]
        if len(metrics) != metrics[0]["workers"]:
            # Ray Train goes on without workers whose node is being taken away, but a part is missing.
            return
        digests = [worker["exchange_digest"] for worker in metrics]
        common = {key: value for key, value in metrics[0].items() if key != "exchange_digest"}
        new = Registered(**common, exchange_digests=digests, attempt=self._attempt, checkpoint=name)
        last = Registered.read(self._folder)
        if last is not None and self._position(new) <= self._position(last):
            raise StageError(
                f"{self._folder}: training went back to step {new.step} of {new.candidate}, though step "
                f"{last.step} of {last.candidate} was registered; please report this"
            )
        new.write(self._folder)

    def _position(self, registered: Registered) -> tuple[int, int]:
        return self._candidates.index(registered.candidate), registered.step
