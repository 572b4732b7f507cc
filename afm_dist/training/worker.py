"""What each Ray Train worker runs: one or several models, one after the other, same recipe.

A start of Ray Train costs seconds, so models that share a recipe share a worker group. Each
result is committed when it is finished; after a restart the group goes on with the first that
is not, from the last registered checkpoint.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import safetensors.torch
import torch
from torch import Tensor, nn

from afm_dist import storage
from afm_dist.checkpoint import from_pretrained, load_config, save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.resources import TrainingResources
from afm_dist.training.loop import History, Worker, total_steps, train
from afm_dist.training.optimizer import LazyAdam
from afm_dist.training.recipe import Recipe

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
    """

    name: str
    source: str
    output: str

    @property
    def checkpoint(self) -> str:
        """Checkpoint directory of the kept weights."""
        return storage.join(self.output, "checkpoint")

    @property
    def history(self) -> str:
        """Where the history is committed, when training is finished."""
        return storage.join(self.output, HISTORY)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Everything a worker needs to know.

    Attributes:
        candidates: Models in order.
        data: Dataset directory.
        recipe: The same for all.
        evaluate_first: Whether the state before the first step competes.
        resources: What each worker has.
        folder: Where progress is written.
    """

    candidates: tuple[Candidate, ...]
    data: str
    recipe: Recipe
    evaluate_first: bool
    resources: TrainingResources
    folder: str


def run_worker(config: dict[str, Any]) -> None:
    """Train every candidate that is not finished yet (called by Ray Train on each worker)."""
    assignment: Assignment = config["assignment"]
    torch.set_num_threads(assignment.resources.cpus)
    context = ray.train.get_context()
    worker = Worker(rank=context.get_world_rank(), world_size=context.get_world_size())
    manifest = Manifest.load(assignment.data)
    resumed = _Resumed.read()
    progress = _Progress(assignment, manifest, worker)
    for index, candidate in enumerate(assignment.candidates):
        if resumed is not None and index < resumed.candidate:
            progress.skip()
            continue
        mine = resumed if resumed is not None and index == resumed.candidate else None
        _train_candidate(assignment, index, candidate, manifest, worker, mine, progress)


def _train_candidate(
    assignment: Assignment,
    index: int,
    candidate: Candidate,
    manifest: Manifest,
    worker: Worker,
    resumed: _Resumed | None,
    progress: _Progress,
) -> None:
    config = load_config(candidate.source)
    model = from_pretrained(candidate.source)
    if resumed is not None:
        model.load_state_dict(resumed.model, strict=True)

    def keep(best: nn.Module) -> None:
        if worker.rank == 0:
            save_pretrained(best, candidate.checkpoint, config)

    def save(state: nn.Module, optimizer: LazyAdam, history: History, step: int) -> None:
        metrics = {"candidate": candidate.name, "step": step, **_last(history)}
        if worker.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="afm-dist-") as folder:
            _Resumed(index, step, history, state.state_dict(), optimizer.state()).write(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    progress.begin(0 if resumed is None else resumed.step)
    history = train(
        model,
        manifest,
        assignment.recipe,
        worker=worker,
        history=History() if resumed is None else resumed.history,
        optimizer_state=None if resumed is None else resumed.optimizer,
        step=0 if resumed is None else resumed.step,
        keep=keep,
        save=save,
        progress=progress.add,
        evaluate_first=assignment.evaluate_first,
    )
    progress.end()
    if worker.rank == 0:
        storage.write_json(candidate.history, history.to_json())


def _last(history: History) -> dict[str, float]:
    point = history.curve[-1]
    return {"validation_auc": point.validation_auc, "validation_log_loss": point.validation_log_loss}


@dataclass
class _Resumed:
    """The state of a candidate after some step: what a Ray Train checkpoint holds."""

    candidate: int
    step: int
    history: History
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @classmethod
    def read(cls) -> _Resumed | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            state = json.loads(Path(folder, "state.json").read_text(encoding="utf-8"))
            tensors = safetensors.torch.load(Path(folder, "state.safetensors").read_bytes())
        part: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            part[kind][name] = value
        history = History.from_json(state["history"])
        if history.curve[-1].step != state["step"]:
            raise RuntimeError(f"checkpoint of step {state['step']} holds a history up to another step")
        return cls(state["candidate"], state["step"], history, part["model"], part["optimizer"])

    def write(self, folder: str) -> None:
        tensors = {f"model/{name}": value for name, value in self.model.items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        safetensors.torch.save_file(tensors, Path(folder, "state.safetensors"))
        state = {"candidate": self.candidate, "step": self.step, "history": self.history.to_json()}
        Path(folder, "state.json").write_text(json.dumps(state), encoding="utf-8")


class _Progress:
    """Rank 0 writes the rows done to a small file that the driver reads now and then."""

    def __init__(self, assignment: Assignment, manifest: Manifest, worker: Worker) -> None:
        self._location = storage.join(assignment.folder, PROGRESS)
        self._writes = worker.rank == 0
        steps = total_steps(assignment.recipe, manifest)
        self._rows_per_step = assignment.recipe.batch_size
        self._rows_per_candidate = assignment.recipe.epochs * manifest.rows("train")
        self._steps = steps
        self._finished = 0
        self._rows = 0
        self._written = 0.0

    def skip(self) -> None:
        self._finished += 1

    def begin(self, step: int) -> None:
        self._rows = step * self._rows_per_step

    def add(self, rows: int) -> None:
        self._rows += rows
        now = time.monotonic()
        if self._writes and now - self._written >= PROGRESS_INTERVAL_S:
            self._written = now
            self._write()

    def end(self) -> None:
        self._finished += 1
        self._rows = 0

    def _write(self) -> None:
        rows = self._finished * self._rows_per_candidate + self._rows
        storage.write_json(self._location, {"rows": rows})


def summary(history: History) -> dict[str, Any]:
    """Why the kept weights were kept, in words."""
    best, first, last = history.best, history.curve[0], history.curve[-1]
    if history.kept_step == 0:
        others = [point.validation_auc for point in history.curve[1:]]
        reason = (
            f"no evaluation beat the validation AUC {best.validation_auc:.5f} from before "
            f"fine-tuning (the best after it was {max(others):.5f})"
            if others
            else "nothing was trained"
        )
        return {"kept": "before fine-tuning", "reason": reason}
    reason = f"validation AUC {first.validation_auc:.5f} -> {best.validation_auc:.5f}, the best seen"
    if last.step != best.step:
        reason += f" (it fell to {last.validation_auc:.5f} by step {last.step})"
    return {"kept": f"step {history.kept_step}", "reason": reason}
