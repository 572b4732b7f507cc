"""The state of a training between two steps: what lies in its checkpoints.

What all workers have alike is written by one of them; what the exchange of gradients carries from step
to step is another on each, and each writes its own file into the same folder.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import safetensors.torch
from torch import Tensor

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.training.exchange.exact import Exact
from afm_dist.training.history import FIX, History

FORMAT_VERSION = 2
DESCRIPTION = "state.json"
TENSORS = "state.safetensors"
EXCHANGE = "exchange-{rank:05d}.safetensors"


class _Description(TypedDict):
    """What ``state.json`` holds."""

    format_version: int
    candidate: str
    step: int
    history: dict[str, Any]
    sha256: str
    workers: int
    exchange: str


@dataclass(frozen=True)
class State:
    """All that a training needs to go on from a step.

    The position in the data and the random numbers are not among it: both are functions of the step.

    Attributes:
        step: Steps done.
        history: Evaluations up to the step.
        losses: Mean loss of each step since the last evaluation, shape (steps,), float64.
        model: The model's tensors.
        optimizer: The optimizer's tensors.
        average: The average of the model's weights; empty without one.
        workers: How many trained.
        exchange: Name of the exchange of gradients.
        exchange_state: Of this worker's exchange; empty without one.
    """

    step: int
    history: History
    losses: Tensor
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)
    workers: int = 1
    exchange: str = Exact.name
    exchange_state: dict[str, Tensor] = field(default_factory=dict)

    def write(self, folder: str, *, candidate: str) -> str:
        """Write ``state.safetensors``, then ``state.json``; returns a digest of both.

        They hold what all workers have alike, so one of them writes it.

        Args:
            folder: Where to.
            candidate: Name of the model that is trained.
        """
        tensors = {f"model/{name}": value for name, value in self.model.items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors["losses"] = self.losses
        digest = _write_tensors(storage.join(folder, TENSORS), tensors)
        description = {
            "format_version": FORMAT_VERSION,
            "candidate": candidate,
            "step": self.step,
            "history": self.history.to_json(),
            "sha256": digest,
            "workers": self.workers,
            "exchange": self.exchange,
        }
        return storage.write_sealed_json(storage.join(folder, DESCRIPTION), description)

    def write_exchange_state(self, folder: str, rank: int) -> str:
        """Write the state of one worker's exchange, where it has one.

        Args:
            folder: Where to; the same for all workers.
            rank: Of the worker.

        Returns:
            A digest of the file; "" where none was written.
        """
        if not self.exchange_state:
            return ""
        return _write_tensors(storage.join(folder, EXCHANGE.format(rank=rank)), self.exchange_state)

    @classmethod
    def read(cls, folder: str, *, candidate: str, step: int, digest: str) -> State:
        """Read what ``write`` wrote, of the candidate and the step that are expected there.

        Args:
            folder: Where it lies.
            candidate: Name of the model that is trained.
            step: Steps done.
            digest: What ``write`` returned.

        Raises:
            DataError: it is missing, damaged, altered, or of another candidate, step or training.
        """
        again, location = FIX, storage.join(folder, DESCRIPTION)
        content = storage.read_sealed_json(location, dict[str, Any], fix=again)
        if content.get("format_version") != FORMAT_VERSION:
            version = reprlib.repr(content.get("format_version"))
            raise DataError(
                f"{folder}: a training state of format version {version}, this "
                f"release reads {FORMAT_VERSION}; {again}"
            )
        description = storage.as_typed(content, _Description, source=location, fix=again)
        found = description["candidate"], description["step"]
        if found != (candidate, step):
            raise DataError(
                f"{folder}: the state of {found[0]} at step {found[1]} where that of {candidate} at step "
                f"{step} was registered; {again}"
            )
        if storage.fingerprint(content) != digest:
            raise DataError(f"{folder}: not the state that was registered, but one of another run; {again}")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "losses": {}}
        for key, value in _read_tensors(storage.join(folder, TENSORS), description["sha256"]).items():
            kind, _, name = key.partition("/")
            parts[kind][name] = value
        return cls(
            step=step,
            history=History.from_json(description["history"], source=location),
            losses=parts["losses"][""],
            model=parts["model"],
            optimizer=parts["optimizer"],
            average=parts["average"],
            workers=description["workers"],
            exchange=description["exchange"],
        )

    def with_exchange_state(self, folder: str, rank: int, digest: str) -> State:
        """Add what ``write_exchange_state`` wrote.

        Args:
            folder: Where it lies.
            rank: Of the worker.
            digest: What ``write_exchange_state`` returned.

        Raises:
            DataError: it is missing, truncated, altered or of another training.
        """
        if not digest:
            return self
        location = storage.join(folder, EXCHANGE.format(rank=rank))
        if not storage.exists(location):
            raise DataError(f"{location}: missing; {FIX}")
        return replace(self, exchange_state=_read_tensors(location, digest))


def _write_tensors(location: str, tensors: Mapping[str, Tensor]) -> str:
    """Write a file, and return its digest."""
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with storage.new_file(location) as path:
        safetensors.torch.save_file(on_cpu, path)
        return storage.file_sha256(str(path))


def _read_tensors(location: str, digest: str) -> dict[str, Tensor]:
    """Read a file of that digest.

    Raises:
        DataError: it has another.
    """
    with storage.local_copy(location) as path:
        if storage.file_sha256(str(path)) != digest:
            raise DataError(f"{location}: truncated or altered; {FIX}")
        # Copies: the file, which is mapped, is deleted when there is a newer checkpoint.
        return {name: value.clone() for name, value in safetensors.torch.load_file(path).items()}
