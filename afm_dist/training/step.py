"""One step of a training: the gradient of a batch, its exchange with the other workers, the update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.dataset.batch import Batch
from afm_dist.training.distillation import Teacher
from afm_dist.training.exchange.exchange import Exchange, StepTotals
from afm_dist.training.gradients import clip, sum_rows_of_tables
from afm_dist.training.optimizer import SplitOptimizer


@dataclass(frozen=True)
class Objective:
    """What is descended on.

    Attributes:
        forward: Called on a batch; gives its logits.
        teacher: Learned from besides the labels.
    """

    forward: Callable[[Batch], Tensor]
    teacher: Teacher | None = None

    def __call__(self, batch: Batch, global_rows: int) -> tuple[Tensor, Tensor]:
        """Give the log loss against the labels, and what is descended on.

        Both are sums over the batch, divided by the rows of all workers.
        """
        logits = self.forward(batch)
        loss = (
            functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum") / global_rows
        )
        return loss, loss if self.teacher is None else self.teacher.loss(logits, batch) / global_rows


def train_step(
    model: nn.Module,
    optimizer: SplitOptimizer,
    batch: Batch,
    global_rows: int,
    *,
    objective: Objective | None = None,
    exchange: Exchange | None = None,
    clip_norm: float | None = None,
    checkpoint: bool = False,
) -> StepTotals:
    """Update the weights once.

    Args:
        model: Called with ids and numbers.
        optimizer: Of its weights.
        batch: This worker's rows; none, where the others have the rest of the split.
        global_rows: Rows of all workers.
        objective: What is descended on; None: the log loss of the model's logits.
        exchange: How gradients travel between the workers; None: there is one worker.
        clip_norm: Largest norm of the gradient, without the part of L2; None does not limit it.
        checkpoint: Whether this worker asks for a checkpoint after the step.

    Returns:
        The mean log loss of the global batch against its labels, and whether any worker asked for a
        checkpoint.
    """
    model.train()
    optimizer.zero_grad()
    batch = batch.to(device_of(model))
    if objective is None:
        objective = Objective(lambda batch: model(batch.ids.long(), batch.numeric))
    loss, descended = objective(batch, global_rows)
    descended.backward()
    sum_rows_of_tables(model)
    taken = StepTotals(loss.detach().double(), checkpoint)
    if exchange is not None:
        taken = exchange.exchange(model, taken)
    if clip_norm is not None:
        clip(model.parameters(), clip_norm)
    optimizer.step()
    return taken


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's weights."""
    return next(model.parameters()).device
