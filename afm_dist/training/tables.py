"""How the rows of a table that occurred in a batch are updated: lazily, by Adam or row-wise Adagrad.

A rule reads and writes only those rows, of the table and of its own state, so a step costs the same
whatever the size of the table.

Shape legend: V rows of a table, K its width, U rows that occurred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from afm_dist.training.recipe import TableOptimizer


class Rule(Protocol):
    """How a table is updated."""

    def new_state(self, weight: Tensor) -> dict[str, Tensor]:
        """Make the state before the first step, by name; ``step`` counts the steps."""

    def update(
        self, weight: Tensor, state: dict[str, Tensor], rows: Tensor, gradient: Tensor, rate: float, l2: float
    ) -> None:
        """Update a table in place.

        Args:
            weight: The table, shape (V, K).
            state: From ``new_state``; updated in place.
            rows: Distinct rows, shape (U,), int64.
            gradient: Of the loss by those rows, shape (U, K); may be overwritten.
            rate: Learning rate.
            l2: r of r·‖W‖², which is added to the loss for these rows.
        """


@dataclass(frozen=True)
class LazyAdam:
    """Adam (Kingma & Ba, 2015) whose moments decay only when their row occurs: ``torch.optim.SparseAdam``.

    Attributes:
        betas: Decay of the first and of the second moment.
        eps: Added to the root of the second moment.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def new_state(self, weight: Tensor) -> dict[str, Tensor]:
        """Make both moments, of the shape of the table."""
        return {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }

    def update(
        self, weight: Tensor, state: dict[str, Tensor], rows: Tensor, gradient: Tensor, rate: float, l2: float
    ) -> None:
        """See ``Rule``."""
        state["step"] += 1
        step, (first, second) = int(state["step"]), self.betas
        values, average, square = (
            tensor.index_select(0, rows) for tensor in (weight, state["exp_avg"], state["exp_avg_sq"])
        )
        if l2 != 0:
            gradient = gradient.add_(values, alpha=2 * l2)
        average.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["exp_avg"].index_copy_(0, rows, average)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        size = rate * math.sqrt(1 - second**step) / (1 - first**step)
        values.addcdiv_(average, square.sqrt_().add_(self.eps), value=-size)
        weight.index_copy_(0, rows, values)


@dataclass(frozen=True)
class RowWiseAdagrad:
    """Adagrad with one accumulator a row, of the mean square of the row's gradient.

    What DLRM and FBGEMM train tables with: the state is 1/(2K) of Adam's. With K = 1 it is
    ``torch.optim.Adagrad``.

    Attributes:
        eps: Added to the root of the accumulator.
    """

    eps: float = 1e-10

    def new_state(self, weight: Tensor) -> dict[str, Tensor]:
        """Make a number a row."""
        return {"step": torch.zeros(()), "sum": weight.new_zeros(len(weight))}

    def update(
        self, weight: Tensor, state: dict[str, Tensor], rows: Tensor, gradient: Tensor, rate: float, l2: float
    ) -> None:
        """See ``Rule``."""
        state["step"] += 1
        if l2 != 0:
            gradient = gradient.add_(weight.index_select(0, rows), alpha=2 * l2)
        total = state["sum"].index_select(0, rows).add_(gradient.square().mean(1))
        state["sum"].index_copy_(0, rows, total)
        scale = total.sqrt_().add_(self.eps).reciprocal_().mul_(-rate)
        weight.index_add_(0, rows, gradient.mul_(scale[:, None]))


RULES: Mapping[TableOptimizer, Rule] = {"adam": LazyAdam(), "adagrad": RowWiseAdagrad()}
