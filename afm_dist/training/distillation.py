"""Distillation: a model learns from the predictions of another one besides the labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.dataset.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model whose predictions are learned from.

    Attributes:
        model: Called with ids and numbers, in eval mode; on the device of the batches.
        weight: w, the share of the soft labels in the loss, in [0, 1).
        temperature: T, more than 0: by which both logits are divided.
    """

    model: nn.Module
    weight: float
    temperature: float

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute ``distillation_loss`` against this model's predictions for a batch, a scalar."""
        with torch.no_grad():
            taught = self.model(batch.ids.long(), batch.numeric).float()
        return distillation_loss(
            logits, batch.labels, taught, weight=self.weight, temperature=self.temperature
        )


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor, *, weight: float, temperature: float
) -> Tensor:
    """Compute (1 − w)·BCE(z, y) + w·T²·BCE(z/T, σ(t/T)), summed over the rows, in nats.

    T² keeps the gradient of the soft labels of the size of that of the labels.

    Args:
        logits: z of the model that learns, shape (B,).
        labels: y, 0 or 1, shape (B,).
        teacher_logits: t, shape (B,).
        weight: w.
        temperature: T.

    Source:
        Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2, with
        the two classes of a click.
    """
    hard = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    soft_labels = torch.sigmoid(teacher_logits / temperature)
    soft = functional.binary_cross_entropy_with_logits(logits / temperature, soft_labels, reduction="sum")
    return (1 - weight) * hard + weight * temperature**2 * soft
