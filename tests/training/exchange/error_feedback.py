"""A lossy exchange with a state: the signs of dense gradients, and the memory of what they left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from afm_dist.training.exchange.exact import ExactSums
from afm_dist.training.exchange.exchange import StepTotals


class ErrorFeedback:
    """Sums signs of dense gradients, times their mean size (Karimireddy et al., 2019)."""

    def __init__(self, world_size: int) -> None:
        self._sums = ExactSums(world_size)
        self._left_out: dict[str, Tensor] = {}

    @property
    def bytes_sent(self) -> int:
        return self._sums.bytes_sent

    def exchange(self, model: nn.Module, mine: StepTotals) -> StepTotals:
        for name, parameter in model.named_parameters():
            if parameter.grad is None or parameter.grad.is_sparse:
                continue
            wanted = parameter.grad + self._left_out.get(name, 0.0)
            parameter.grad = wanted.sign() * wanted.abs().mean()
            self._left_out[name] = wanted - parameter.grad
        return self._sums.exchange(model, mine)

    def state(self) -> dict[str, Tensor]:
        return dict(self._left_out)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._left_out = dict(state)

    def forget(self, names: Collection[str]) -> None:
        for name in names:
            self._left_out.pop(name, None)


@dataclass(frozen=True)
class SignsWithErrorFeedback:
    name: ClassVar[str] = "signs"

    def build(self, world_size: int) -> ErrorFeedback:
        return ErrorFeedback(world_size)
