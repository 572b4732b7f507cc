"""The training loop of one model on one worker: deterministic, watched, resumable.

The state after a step is a function of the recipe, the data, the number of workers and the threads
of each, so a run that resumes at a step ends with the weights of one that was never interrupted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.order import TrainingOrder
from afm_dist.errors import DataError, OptionError
from afm_dist.evaluation.score import Quality, score_shards
from afm_dist.evaluation.scored_rows import ScoredRows
from afm_dist.training.averaging import WeightAverage
from afm_dist.training.distillation import Teacher
from afm_dist.training.forward import Forward
from afm_dist.training.freezing import freeze_
from afm_dist.training.gradients import Step, clip, sum_over_workers, sum_rows_of_tables
from afm_dist.training.history import History, Point
from afm_dist.training.optimizer import SplitOptimizer, sparse_weights
from afm_dist.training.recipe import Recipe
from afm_dist.training.state import State


@dataclass(frozen=True)
class Worker:
    """This process's place among the workers."""

    rank: int = 0
    world_size: int = 1


def total_steps(recipe: Recipe, manifest: Manifest) -> int:
    """Steps of a whole training."""
    return recipe.epochs * TrainingOrder(manifest=manifest, batch_size=recipe.batch_size, seed=0).steps


def rows_seen(step: int, recipe: Recipe, manifest: Manifest) -> int:
    """Rows of all batches before a step, counted again in each epoch."""
    rows = manifest.rows("train")
    epochs, steps = divmod(step, -(-rows // recipe.batch_size))
    return epochs * rows + min(steps * recipe.batch_size, rows)


def evaluation_steps(recipe: Recipe, manifest: Manifest) -> set[int]:
    """After which steps the validation split is scored: evenly, and at each epoch's end.

    Where tables are drawn anew, only at each epoch's end: within an epoch they have seen part of the
    rows, and would count as setbacks.
    """
    steps = TrainingOrder(manifest=manifest, batch_size=recipe.batch_size, seed=0).steps
    parts = 1 if recipe.reset_tables else min(recipe.evaluations_per_epoch, steps)
    within = [(i + 1) * steps // parts for i in range(parts)]
    return {epoch * steps + step for epoch in range(recipe.epochs) for step in within}


def train(
    model: nn.Module,
    manifest: Manifest,
    recipe: Recipe,
    *,
    worker: Worker,
    start: State | None,
    evaluate_first: bool,
    keep: Callable[[nn.Module, int], None],
    save: Callable[[State], None],
    checkpoint_due: Callable[[], bool],
    progress: Callable[[int], None],
    teacher: nn.Module | None = None,
) -> History:
    """Train a model in place, on the device on which its weights are.

    Args:
        model: The model; takes over the weights of ``start``.
        manifest: Training and validation rows.
        recipe: What to do.
        worker: Which part of each batch is ours.
        start: The state to go on from; None at the beginning.
        evaluate_first: Whether the untrained state competes (fine-tuning: yes).
        keep: Called with the model and the step whenever it is the best seen.
        save: Called on every worker after each evaluation, and after a step for which any of them
            asked for a checkpoint. The state is valid until it returns.
        checkpoint_due: Asked before each step. When it says so does not change the result.
        progress: Called with the rows of each global batch.
        teacher: For a recipe with a ``distill_weight``: called in eval mode, on the same device. None:
            the labels are all that is learned from.

    Returns:
        The history, complete.

    Raises:
        DataError: the loss became NaN or infinite, or the validation split has rows of one label only.
    """
    set_dropout(model, recipe.dropout)
    freeze_(model, recipe.trained)
    optimizer = optimizer_of(model, recipe)
    forward = Forward(model, recipe, worker.world_size)
    if recipe.reset_tables:
        check_reset(model)
    order = TrainingOrder(
        manifest=manifest,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        rank=worker.rank,
        world_size=worker.world_size,
    )
    evaluations = evaluation_steps(recipe, manifest)
    average = WeightAverage(model) if recipe.average else None
    taught_by = _teacher(teacher, recipe)
    step, history, losses = 0, History(), []
    if start is not None:
        model.load_state_dict(start.model, strict=True)
        optimizer.load_state(start.optimizer)
        if optimizer.steps != start.step:
            raise RuntimeError(f"the optimizer is {optimizer.steps} steps on, the training {start.step}")
        step, history = start.step, copy.deepcopy(start.history)
        losses = list(start.losses.to(device_of(model)).unbind())
        if average is not None:
            average.load_state(start.average, history.scored_states)

    def state() -> State:
        seen = torch.stack(losses).cpu() if losses else torch.empty(0, dtype=torch.float64)
        means = {} if average is None else average.state()
        return State(step, copy.deepcopy(history), seen, model.state_dict(), optimizer.state(), means)

    def evaluate() -> None:
        train_loss = _mean_loss(losses, step, recipe) if losses else None
        losses.clear()
        if average is not None and step > 0:
            average.add()
        with nullcontext() if average is None else average.in_place():
            quality = _validate(model, manifest, worker)
            if quality.auc is None or quality.log_loss is None:
                raise DataError(f"{manifest.location}: the validation split needs rows of both labels")
            rows = rows_seen(step, recipe, manifest)
            if history.add(Point(step, rows, train_loss, quality.auc, quality.log_loss), recipe.patience):
                keep(model, step)
        save(state())

    if step == 0 and evaluate_first and not history.curve:
        evaluate()
    for batch in _batches_from(step, order, recipe.epochs):
        if history.stopped_early:
            break
        global_rows = rows_seen(step + 1, recipe, manifest) - rows_seen(step, recipe, manifest)
        if recipe.reset_tables and step > 0 and step % order.steps == 0:
            reset_tables(model, optimizer, _seed(recipe.seed, step, 0, 1))
        optimizer.scale_learning_rates(recipe.plateau_factor**history.setbacks)
        torch.manual_seed(_seed(recipe.seed, step, worker.rank))
        taken = train_step(
            model,
            optimizer,
            batch,
            global_rows,
            worker.world_size,
            forward=forward,
            clip_norm=recipe.clip_norm,
            checkpoint=checkpoint_due(),
            teacher=taught_by,
        )
        losses.append(taken.loss)
        step += 1
        progress(global_rows)
        if step in evaluations:
            evaluate()
        elif taken.checkpoint:
            _mean_loss(losses, step, recipe)
            save(state())
    if not history.stopped_early and step != total_steps(recipe, manifest):
        raise RuntimeError(f"training ended after {step} of {total_steps(recipe, manifest)} steps")
    history.finished = True
    return history


def optimizer_of(model: nn.Module, recipe: Recipe) -> SplitOptimizer:
    """The optimizer that a recipe asks for."""
    return SplitOptimizer(
        model,
        recipe.learning_rate,
        recipe.l2,
        tables=recipe.table_optimizer,
        table_learning_rate=recipe.table_learning_rate,
        table_l2=recipe.table_l2,
    )


def _teacher(model: nn.Module | None, recipe: Recipe) -> Teacher | None:
    if recipe.distill_weight == 0:
        return None
    if model is None:
        raise ValueError("a recipe with a distill weight needs a teacher")
    return Teacher(model=model.eval(), weight=recipe.distill_weight, temperature=recipe.distill_temperature)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are."""
    return next(model.parameters()).device


def _batches_from(step: int, order: TrainingOrder, epochs: int) -> Iterator[Batch]:
    for epoch in range(step // order.steps, epochs):
        yield from order.batches(epoch, max(0, step - epoch * order.steps))


def train_step(
    model: nn.Module,
    optimizer: SplitOptimizer,
    batch: Batch,
    global_rows: int,
    world_size: int = 1,
    *,
    forward: Callable[[Batch], Tensor] | None = None,
    clip_norm: float | None = None,
    checkpoint: bool = False,
    teacher: Teacher | None = None,
) -> Step:
    """One update of the weights.

    Args:
        model: Called with ids and numbers.
        optimizer: Of its weights.
        batch: This worker's rows; none, where the others have the rest of the split.
        global_rows: Rows of all workers.
        world_size: Number of workers.
        forward: Called instead of the model; gives its logits.
        clip_norm: Largest norm of the gradient, without the part of L2; None does not limit it.
        checkpoint: Whether this worker asks for a checkpoint after the step.
        teacher: Learned from besides the labels.

    Returns:
        The mean log loss of the global batch against its labels, and whether any worker asked for a
        checkpoint.
    """
    model.train()
    optimizer.zero_grad()
    batch = batch.to(device_of(model))
    logits = model(batch.ids.long(), batch.numeric) if forward is None else forward(batch)
    loss = functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum") / global_rows
    descended = loss if teacher is None else teacher.loss(logits, batch) / global_rows
    descended.backward()
    sum_rows_of_tables(model)
    taken = sum_over_workers(model, loss.detach().double(), world_size, checkpoint=checkpoint)
    if clip_norm is not None:
        clip(model.parameters(), clip_norm)
    optimizer.step()
    return taken


def _mean_loss(losses: list[Tensor], step: int, recipe: Recipe) -> float:
    """Mean loss of some steps.

    Raises:
        DataError: it is NaN or infinite.
    """
    mean = float(torch.stack(losses).mean())
    if not np.isfinite(mean):
        tables = f", of the tables {recipe.table_learning_rate}" if recipe.table_learning_rate else ""
        raise DataError(
            f"the training loss became {mean} before step {step}; lower the learning rate "
            f"({recipe.learning_rate}{tables})"
        )
    return mean


def check_reset(model: nn.Module) -> None:
    """Refuse to draw tables anew that cannot be.

    Raises:
        OptionError: a table is not of a model here, or was compressed.
    """
    for name in sparse_weights(model):
        module = model.get_submodule(name.rpartition(".")[0])
        if not hasattr(module, "reset_table") or getattr(module, "projection", None) is not None:
            raise OptionError(
                f"reset_tables: {name} cannot be drawn anew: only uncompressed tables of the models here can"
            )


def reset_tables(model: nn.Module, optimizer: SplitOptimizer, seed: int) -> None:
    """Begin anew with all tables and their part of the optimizer; what is dense goes on (MEDA)."""
    names = list(sparse_weights(model))
    torch.manual_seed(seed)
    for name in names:
        module: Any = model.get_submodule(name.rpartition(".")[0])
        module.reset_table()
    optimizer.forget(names)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Of all its layers; None leaves them as they are."""
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
    return Quality.of(part)
