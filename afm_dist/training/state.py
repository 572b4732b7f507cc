"""The state of a training between two steps: what lies in its checkpoints."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from typing import Any, TypedDict

import safetensors.torch
from torch import Tensor

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.training.history import AGAIN, History

FORMAT_VERSION = 1
DESCRIPTION = "state.json"
TENSORS = "state.safetensors"


class _Description(TypedDict):
    """What ``state.json`` holds."""

    format_version: int
    candidate: str
    step: int
    history: dict[str, Any]
    sha256: str


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
    """

    step: int
    history: History
    losses: Tensor
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)

    def write(self, folder: str, *, candidate: str) -> str:
        """Write ``state.safetensors``, then ``state.json``; returns a digest of both.

        Args:
            folder: Where to.
            candidate: Name of the model that is trained.
        """
        tensors = {f"model/{name}": value for name, value in self.model.items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors["losses"] = self.losses
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with storage.new_file(storage.join(folder, TENSORS)) as path:
            safetensors.torch.save_file(tensors, path)
            digest = storage.file_sha256(str(path))
        description = {
            "format_version": FORMAT_VERSION,
            "candidate": candidate,
            "step": self.step,
            "history": self.history.to_json(),
            "sha256": digest,
        }
        return storage.write_sealed_json(storage.join(folder, DESCRIPTION), description)

    @classmethod
    def read(cls, folder: str, *, candidate: str, step: int, digest: str) -> State:
        """What ``write`` wrote, of the candidate and the step that are expected there.

        Args:
            folder: Where it lies.
            candidate: Name of the model that is trained.
            step: Steps done.
            digest: What ``write`` returned.

        Raises:
            DataError: it is missing, damaged, altered, or of another candidate, step or training.
        """
        again, location = AGAIN, storage.join(folder, DESCRIPTION)
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
        with storage.local_copy(storage.join(folder, TENSORS)) as path:
            if storage.file_sha256(str(path)) != description["sha256"]:
                raise DataError(f"{folder}/{TENSORS}: truncated or altered; {again}")
            for key, value in safetensors.torch.load_file(path).items():
                kind, _, name = key.partition("/")
                # A copy: the file, which is mapped, is deleted when there is a newer checkpoint.
                parts[kind][name] = value.clone()
        return cls(
            step=step,
            history=History.from_json(description["history"], source=location),
            losses=parts["losses"][""],
            model=parts["model"],
            optimizer=parts["optimizer"],
            average=parts["average"],
        )
