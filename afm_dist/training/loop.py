"""The training loop of one model on one worker: deterministic, watched, resumable.

The state after a step is a function of the recipe, the data, the number of workers and the threads
of each, so a run that resumes at a step ends with the weights of one that was never interrupted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.order import TrainingOrder
from afm_dist.errors import DataError, OptionError
from afm_dist.evaluation.score import Quality, score_shards
from afm_dist.evaluation.scored_rows import ScoredRows
from afm_dist.training.averaging import WeightAverage
from afm_dist.training.distillation import Teacher
from afm_dist.training.exchange.exact import EXACT
from afm_dist.training.exchange.exchange import ExchangeConfig, check_exchange
from afm_dist.training.forward import Forward
from afm_dist.training.freezing import freeze_
from afm_dist.training.history import EvaluationPoint, History
from afm_dist.training.optimizer import SplitOptimizer, sparse_weights
from afm_dist.training.recipe import Recipe
from afm_dist.training.schedule import evaluation_steps, rows_seen, total_steps
from afm_dist.training.state import State
from afm_dist.training.step import Objective, device_of, train_step


@dataclass(frozen=True)
class Worker:
    """This process's place among the workers."""

    rank: int = 0
    world_size: int = 1


ALONE = Worker()


class Callbacks(Protocol):
    """What a training calls on the way."""

    def keep(self, model: nn.Module, step: int) -> None:
        """Keep the model: called whenever it is the best seen."""

    def save(self, state: State) -> None:
        """Save the state: called on every worker after each evaluation, and after a step for which any asked.

        The state is valid until it returns.
        """

    def checkpoint_due(self) -> bool:
        """Return whether a checkpoint is due: called before each step, without effect on the result."""

    def progress(self, rows: int) -> None:
        """Show progress: called with the rows of each global batch."""


class Trainer:
    """Trains a model in place, on the device on which its weights are.

    Args:
        model: The model.
        manifest: Training and validation rows.
        recipe: What to do.
        worker: Which part of each batch is ours.
        teacher: For a recipe with a ``distill_weight``: called in eval mode, on the same device. None:
            the labels are all that is learned from.
        exchange: How gradients travel between the workers.
    """

    def __init__(
        self,
        model: nn.Module,
        manifest: Manifest,
        recipe: Recipe,
        *,
        worker: Worker = ALONE,
        teacher: nn.Module | None = None,
        exchange: ExchangeConfig = EXACT,
    ) -> None:
        set_dropout(model, recipe.dropout)
        freeze_(model, recipe.trained)
        if recipe.reset_tables:
            check_reset(model)
        self._model = model
        self._manifest = manifest
        self._recipe = recipe
        self._worker = worker
        self._optimizer = optimizer_of(model, recipe)
        self._objective = Objective(Forward(model, recipe, worker.world_size), _teacher(teacher, recipe))
        self._exchange_name = exchange.name
        self._exchange = exchange.build(worker.world_size)
        self._order = TrainingOrder(
            manifest=manifest,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            rank=worker.rank,
            world_size=worker.world_size,
        )
        self._average = WeightAverage(model) if recipe.average else None
        self._step = 0
        self._history = History()
        self._losses: list[Tensor] = []
        self._sent_before = 0

    def run(
        self, callbacks: Callbacks, *, start: State | None = None, evaluate_first: bool = False
    ) -> History:
        """Train to the end, once.

        Args:
            callbacks: Called on the way.
            start: The state to go on from, whose weights the model takes over; None at the beginning.
            evaluate_first: Whether the untrained state competes (fine-tuning: yes).

        Returns:
            The history, complete.

        Raises:
            DataError: the loss became NaN or infinite, or the validation split has rows of one label only.
        """
        recipe, history = self._recipe, self._history
        evaluations = evaluation_steps(recipe, self._manifest)
        if start is not None:
            history = self._history = self._load(start)
        if self._step == 0 and evaluate_first and not history.curve:
            self._evaluate(callbacks)
        for batch in _batches_from(self._step, self._order, recipe.epochs):
            if history.stopped_early:
                break
            checkpoint = self._update(batch, callbacks)
            if self._step in evaluations:
                self._evaluate(callbacks)
            elif checkpoint:
                _mean_loss(self._losses, self._step, recipe)
                callbacks.save(self._state())
        steps = total_steps(recipe, self._manifest)
        if not history.stopped_early and self._step != steps:
            raise RuntimeError(f"training ended after {self._step} of {steps} steps")
        history.finished = True
        return history

    def _load(self, start: State) -> History:
        """Take over a state."""
        self._model.load_state_dict(start.model, strict=True)
        self._optimizer.load_state(start.optimizer)
        if self._optimizer.steps != start.step:
            raise RuntimeError(
                f"the optimizer is {self._optimizer.steps} steps on, the training {start.step}"
            )
        check_exchange(
            self._exchange_name,
            self._worker.world_size,
            saved=start.exchange,
            saved_workers=start.workers,
            stateful=bool(start.exchange_state),
        )
        self._exchange.load_state(start.exchange_state)
        self._step = start.step
        self._losses = list(start.losses.to(device_of(self._model)).unbind())
        history = copy.deepcopy(start.history)
        self._sent_before = history.bytes_sent
        if self._average is not None:
            self._average.load_state(start.average, history.scored_states)
        return history

    def _state(self) -> State:
        self._history.bytes_sent = self._sent_before + self._sent_by_all()
        losses = self._losses
        return State(
            step=self._step,
            history=copy.deepcopy(self._history),
            losses=torch.stack(losses).cpu() if losses else torch.empty(0, dtype=torch.float64),
            model=self._model.state_dict(),
            optimizer=self._optimizer.state(),
            average={} if self._average is None else self._average.state(),
            workers=self._worker.world_size,
            exchange=self._exchange_name,
            exchange_state=self._exchange.state(),
        )

    def _sent_by_all(self) -> int:
        """Sum the bytes that all workers gave to collectives since this object was made."""
        mine = self._exchange.bytes_sent
        if self._worker.world_size == 1:
            return mine
        total = torch.tensor(mine, dtype=torch.int64, device=device_of(self._model))
        dist.all_reduce(total)
        return int(total)

    def _evaluate(self, callbacks: Callbacks) -> None:
        """Score the validation split, and save."""
        train_loss = _mean_loss(self._losses, self._step, self._recipe) if self._losses else None
        self._losses.clear()
        if self._average is not None and self._step > 0:
            self._average.add()
        with nullcontext() if self._average is None else self._average.in_place():
            quality = _validate(self._model, self._manifest, self._worker)
            if quality.auc is None or quality.log_loss is None:
                raise DataError(f"{self._manifest.location}: the validation split needs rows of both labels")
            rows = rows_seen(self._step, self._recipe, self._manifest)
            point = EvaluationPoint(self._step, rows, train_loss, quality.auc, quality.log_loss)
            if self._history.add(point, self._recipe.patience):
                callbacks.keep(self._model, self._step)
        callbacks.save(self._state())

    def _update(self, batch: Batch, callbacks: Callbacks) -> bool:
        """Take one step; returns whether any worker asked for a checkpoint after it."""
        recipe, step = self._recipe, self._step
        rows = rows_seen(step + 1, recipe, self._manifest) - rows_seen(step, recipe, self._manifest)
        if recipe.reset_tables and step > 0 and step % self._order.steps == 0:
            seed = _seed(recipe.seed, step, 0, 1)
            self._exchange.forget(reset_tables(self._model, self._optimizer, seed))
        self._optimizer.scale_learning_rates(recipe.plateau_factor**self._history.setbacks)
        torch.manual_seed(_seed(recipe.seed, step, self._worker.rank))
        taken = train_step(
            self._model,
            self._optimizer,
            batch,
            rows,
            objective=self._objective,
            exchange=self._exchange,
            clip_norm=recipe.clip_norm,
            checkpoint=callbacks.checkpoint_due(),
        )
        self._losses.append(taken.loss)
        self._step += 1
        callbacks.progress(rows)
        return taken.checkpoint


def optimizer_of(model: nn.Module, recipe: Recipe) -> SplitOptimizer:
    """Make the optimizer of a recipe."""
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


def _batches_from(step: int, order: TrainingOrder, epochs: int) -> Iterator[Batch]:
    for epoch in range(step // order.steps, epochs):
        yield from order.batches(epoch, max(0, step - epoch * order.steps))


def _mean_loss(losses: list[Tensor], step: int, recipe: Recipe) -> float:
    """Compute the mean loss of some steps.

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


def reset_tables(model: nn.Module, optimizer: SplitOptimizer, seed: int) -> list[str]:
    """Begin anew with all tables and their part of the optimizer; what is dense goes on (MEDA).

    Returns:
        Names of their weights.
    """
    names = list(sparse_weights(model))
    torch.manual_seed(seed)
    for name in names:
        module: Any = model.get_submodule(name.rpartition(".")[0])
        module.reset_table()
    optimizer.forget(names)
    return names


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Set the dropout of all layers; None leaves them as they are."""
    if probability is None:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


def _validate(model: nn.Module, manifest: Manifest, worker: Worker) -> Quality:
    """Measure quality on the validation split, each worker scoring its share of the shards."""
    shards = manifest.shards("validation")[worker.rank :: worker.world_size]
    part = score_shards(model, manifest, shards)
    if worker.world_size > 1:
        parts: list[Any] = [None] * worker.world_size
        dist.all_gather_object(parts, part)
        part = ScoredRows.merged(parts)
    return Quality.of(part)
