"""Sums of the workers' gradients, dense and sparse, without loss: the exchange without a state.

Sparse gradients are gathered as (rows, values) of every worker and summed by each: the same code
under gloo and NCCL (which has no sparse all-reduce), and every worker gets the same bits.

Not by ``DistributedDataParallel``, which takes gradients for sparse of ``nn.Embedding`` only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from afm_dist.training.exchange.collectives import Collectives
from afm_dist.training.exchange.exchange import StepTotals
from afm_dist.training.gradients import gradient_of, sum_rows


class ExactSums:
    """Replaces each gradient by its sum over all workers.

    Args:
        world_size: Number of workers; with one nothing is sent.
    """

    def __init__(self, world_size: int) -> None:
        self._collectives = Collectives(world_size)

    @property
    def bytes_sent(self) -> int:
        """See ``Exchange``."""
        return self._collectives.bytes_sent

    def exchange(self, model: nn.Module, mine: StepTotals) -> StepTotals:
        """See ``Exchange``."""
        if self._collectives.world_size == 1:
            return mine
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        sparse = [parameter for parameter in parameters if gradient_of(parameter).is_sparse]
        dense = [gradient_of(parameter) for parameter in parameters if not gradient_of(parameter).is_sparse]
        # One small message first: the lengths of the later ones, and what else all have to know.
        lengths = [gradient_of(parameter)._nnz() for parameter in sparse]
        message = [float(mine.loss), float(mine.checkpoint), *lengths]
        sent = torch.tensor(message, dtype=torch.float64, device=mine.loss.device)
        received = torch.stack(self._collectives.gather(sent))
        if dense:
            joined = torch.cat([gradient.flatten() for gradient in dense])
            self._collectives.sum(joined)
            for gradient, part in zip(dense, joined.split([one.numel() for one in dense]), strict=True):
                gradient.copy_(part.view_as(gradient))
        for parameter, lengths_of_all in zip(sparse, received[:, 2:].long().T.tolist(), strict=True):
            parameter.grad = self._sum_sparse(gradient_of(parameter), lengths_of_all)
        return StepTotals(received[:, 0].sum(), bool(received[:, 1].any()))

    def _sum_sparse(self, gradient: Tensor, lengths: Sequence[int]) -> Tensor:
        """Sum the workers' gradients of a table, with ``lengths`` rows each."""
        if max(lengths) == 0:
            return gradient
        rows = self._collectives.gather_rows(gradient.indices()[0], lengths)
        values = self._collectives.gather_rows(gradient.values(), lengths)
        return sum_rows(torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=False))

    def state(self) -> dict[str, Tensor]:
        """Return nothing: a sum depends on its step alone."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over nothing.

        Raises:
            KeyError: there is something, of another exchange.
        """
        if state:
            raise KeyError(f"exact sums have no state, but there is {', '.join(state)}")

    def forget(self, names: Collection[str]) -> None:
        """Drop nothing."""


@dataclass(frozen=True)
class Exact:
    """Chooses exact sums."""

    name: ClassVar[str] = "exact"

    def build(self, world_size: int) -> ExactSums:
        """See ``ExchangeConfig``."""
        return ExactSums(world_size)


EXACT = Exact()
