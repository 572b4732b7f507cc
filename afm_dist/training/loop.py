"""The training loop of one model on one worker: deterministic, watched, resumable.

The state after a step is a function of the recipe, the data and the number of workers, so a
run that resumes at a step ends with the weights of one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.order import TrainingOrder
from afm_dist.errors import DataError
from afm_dist.evaluation.score import Quality, score_shards
from afm_dist.evaluation.scored_rows import ScoredRows
from afm_dist.training.optimizer import LazyAdam
from afm_dist.training.recipe import Recipe


@dataclass
class Point:
    """One evaluation on the validation split; step 0 is before the first step."""

    step: int
    rows: int
    train_loss: float | None
    validation_auc: float
    validation_log_loss: float


@dataclass
class History:
    """What a training saw and which of its states is kept.

    Attributes:
        curve: Evaluations in order.
        kept_step: Step of the best validation AUC: the weights that are kept.
        stopped_early: Whether patience ran out.
        finished: Whether training came to its end.
    """

    curve: list[Point] = field(default_factory=list)
    kept_step: int = -1
    stopped_early: bool = False
    finished: bool = False

    @property
    def best(self) -> Point:
        """The evaluation of the kept weights."""
        return next(point for point in self.curve if point.step == self.kept_step)

    def add(self, point: Point, patience: int) -> bool:
        """Record an evaluation; returns whether it is the best so far."""
        self.curve.append(point)
        improved = self.kept_step < 0 or point.validation_auc > self.best.validation_auc
        if improved:
            self.kept_step = point.step
        since_best = sum(other.step > self.kept_step for other in self.curve)
        self.stopped_early = since_best >= patience
        return improved

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> History:
        """Back from plain values."""
        return cls(**{**value, "curve": [Point(**point) for point in value["curve"]]})


@dataclass(frozen=True)
class Worker:
    """This process's place among the workers."""

    rank: int = 0
    world_size: int = 1


def total_steps(recipe: Recipe, manifest: Manifest) -> int:
    """Steps of a whole training."""
    return recipe.epochs * TrainingOrder(manifest=manifest, batch_size=recipe.batch_size, seed=0).steps


def evaluation_steps(recipe: Recipe, manifest: Manifest) -> set[int]:
    """After which steps the validation split is scored: evenly, and at each epoch's end."""
    steps = TrainingOrder(manifest=manifest, batch_size=recipe.batch_size, seed=0).steps
    parts = min(recipe.evaluations_per_epoch, steps)
    within = [(i + 1) * steps // parts for i in range(parts)]
    return {epoch * steps + step for epoch in range(recipe.epochs) for step in within}


def train(
    model: nn.Module,
    manifest: Manifest,
    recipe: Recipe,
    *,
    worker: Worker,
    history: History,
    optimizer_state: dict[str, Tensor] | None,
    step: int,
    keep: Callable[[nn.Module], None],
    save: Callable[[nn.Module, LazyAdam, History, int], None],
    progress: Callable[[int], None],
    evaluate_first: bool,
) -> History:
    """Train a model in place.

    Args:
        model: In the state it had after ``step`` steps.
        manifest: Training and validation rows.
        recipe: What to do.
        worker: Which part of each batch is ours.
        history: Evaluations up to ``step``.
        optimizer_state: From the save at ``step``; None at the start.
        step: Steps already done.
        keep: Called with the model whenever it is the best seen.
        save: Called after each evaluation, on every worker, with all that a resume needs.
        progress: Called with the rows of each global batch.
        evaluate_first: Whether the untrained state competes (fine-tuning: yes).

    Returns:
        The history, complete.

    Raises:
        DataError: the loss became NaN or infinite.
    """
    _set_dropout(model, recipe.dropout)
    optimizer = LazyAdam(model, recipe.learning_rate, recipe.l2)
    if optimizer_state is not None:
        optimizer.load_state(optimizer_state)
    order = TrainingOrder(
        manifest=manifest,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        rank=worker.rank,
        world_size=worker.world_size,
    )
    evaluations = evaluation_steps(recipe, manifest)

    def evaluate(train_loss: float | None) -> None:
        quality = _validate(model, manifest, worker)
        rows = min(step % order.steps * recipe.batch_size, manifest.rows("train"))
        rows += step // order.steps * manifest.rows("train")
        point = Point(step, rows, train_loss, quality.auc, quality.log_loss)
        if history.add(point, recipe.patience):
            keep(model)
        save(model, optimizer, history, step)

    if step == 0 and evaluate_first and not history.curve:
        evaluate(None)
    losses: list[Tensor] = []
    for batch in _batches_from(step, order, recipe.epochs):
        if history.stopped_early:
            break
        global_rows = min(recipe.batch_size, manifest.rows("train") - step % order.steps * recipe.batch_size)
        torch.manual_seed(_step_seed(recipe.seed, step, worker.rank))
        losses.append(train_step(model, optimizer, batch, global_rows, worker.world_size))
        step += 1
        progress(global_rows)
        if step in evaluations:
            train_loss = float(torch.stack(losses).mean())
            losses.clear()
            if not np.isfinite(train_loss):
                raise DataError(
                    f"the training loss became {train_loss} before step {step}; lower the learning rate "
                    f"({recipe.learning_rate})"
                )
            evaluate(train_loss)
    if not history.stopped_early and step != total_steps(recipe, manifest):
        raise RuntimeError(f"training ended after {step} of {total_steps(recipe, manifest)} steps")
    history.finished = True
    return history


def _batches_from(step: int, order: TrainingOrder, epochs: int) -> Iterator[Batch]:
    for epoch in range(step // order.steps, epochs):
        yield from order.batches(epoch, max(0, step - epoch * order.steps))


def train_step(
    model: nn.Module, optimizer: LazyAdam, batch: Batch, global_rows: int, world_size: int = 1
) -> Tensor:
    """One update of the weights.

    Args:
        model: Called with ids and numbers.
        optimizer: Of its weights.
        batch: This worker's rows.
        global_rows: Rows of all workers.
        world_size: Number of workers.

    Returns:
        This worker's share of the mean loss, times the number of workers.
    """
    model.train()
    optimizer.zero_grad()
    logits = model(batch.ids.long(), batch.numeric)
    total = functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum")
    (total / global_rows).backward()
    if world_size > 1:
        _sum_gradients(model)
    optimizer.step()
    return total.detach() * (world_size / global_rows)


def _sum_gradients(model: nn.Module) -> None:
    """Add up the workers' gradients: all dense ones in one message, each sparse one in one.

    Not by ``DistributedDataParallel``, which takes gradients for sparse of ``nn.Embedding`` only.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    dense = [gradient for gradient in gradients if not gradient.is_sparse]
    joined = torch.cat([gradient.flatten() for gradient in dense])
    dist.all_reduce(joined)
    parts = joined.split([gradient.numel() for gradient in dense])
    for gradient, part in zip(dense, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    for gradient in gradients:
        if gradient.is_sparse:
            dist.all_reduce(gradient)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def _set_dropout(model: nn.Module, probability: float | None) -> None:
    if probability is None:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


def _validate(model: nn.Module, manifest: Manifest, worker: Worker) -> Quality:
    """Quality on the validation split, each worker scoring its share of the shards."""
    shards = manifest.shards("validation")[worker.rank :: worker.world_size]
    part = score_shards(model, manifest, shards)
    if worker.world_size > 1:
        parts: list[Any] = [None] * worker.world_size
        dist.all_gather_object(parts, part)
        part = ScoredRows.merged(parts)
    return Quality.of(part, "validation")
