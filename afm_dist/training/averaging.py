"""The average of a round's weights: stochastic weight averaging (Izmailov et al., UAI 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The equal average of a model's weights at the evaluations of a round.

    Only there, not at each step: an evaluation reads and writes the whole model anyway, a step only
    the rows of its batch. What is frozen is left out.

    Args:
        model: Whose trained weights are averaged.

    Notes:
        One more copy of the trained weights in memory, and in checkpoints of the training.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._means: dict[str, Tensor] = {}
        self._states = 0

    @torch.no_grad()
    def add(self) -> None:
        """Count the weights in as they are now."""
        self._states += 1
        for name, weight in self._weights.items():
            if name in self._means:
                self._means[name].lerp_(weight, 1 / self._states)
            else:
                self._means[name] = weight.detach().clone()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the average for weights within the context; its own as long as nothing was added."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, mean in self._means.items():
            weight = self._weights[name]
            self._means[name], weight.data = weight.data, mean

    def state(self) -> dict[str, Tensor]:
        """Return the means by name of the weight."""
        return dict(self._means)

    def load_state(self, means: Mapping[str, Tensor], states: int) -> None:
        """Take over what ``state`` gave.

        Args:
            means: By name of the weight.
            states: How many states were averaged.

        Raises:
            KeyError: means of other weights than those that are trained, or none of some states.
        """
        if means.keys() != (self._weights.keys() if states else set()):
            raise KeyError(f"averages of other weights: {', '.join(means.keys() ^ self._weights.keys())}")
        self._means = {name: mean.to(self._weights[name].device) for name, mean in means.items()}
        self._states = states
