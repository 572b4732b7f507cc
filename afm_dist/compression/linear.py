"""How ``nn.Linear`` is compressed (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from afm_dist.compression.handler import Handler, Observation, check_width
from afm_dist.compression.layers import LowRankLinear
from afm_dist.compression.methods import FACTORIZATIONS
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import PlanEntry
from afm_dist.compression.ranks import module_key


class LinearHandler(Handler[nn.Linear]):
    """Two thin linear layers for a wide one; every position of a sequence is a row."""

    makes = (LowRankLinear,)

    def widths(self, name: str, module: nn.Linear) -> Mapping[str, int]:
        """The outputs."""
        return {module_key(name): module.out_features}

    def observe(
        self, name: str, module: nn.Linear, output: Tensor, *args: Any, **kwargs: Any
    ) -> Iterator[Observation]:
        """Every output."""
        yield Observation(module_key(name), output.reshape(-1, output.shape[-1]))

    def build(self, module: nn.Linear, entry: PlanEntry) -> LowRankLinear:
        """The two layers."""
        check_width(entry, module.out_features)
        return LowRankLinear(module.in_features, module.out_features, entry.rank, entry.activation)

    def fill(self, new: LowRankLinear, module: nn.Linear, entry: PlanEntry, known: OutputStatistics) -> None:
        """Factors by the entry's method."""
        weight = module.weight.cpu()
        bias = None if module.bias is None else module.bias.cpu()
        method = FACTORIZATIONS[entry.method]
        factors = method.linear(weight, bias, module_key(entry.name), entry, known)
        rank = factors.first_weight.shape[0]
        for target in (new.first.weight, new.second.weight):
            target.zero_()  # an SVD of a layer with fewer inputs than the rank leaves zeros
        new.first.weight[:rank].copy_(factors.first_weight)
        if factors.first_bias is not None:
            new.first.bias.zero_()
            new.first.bias[:rank].copy_(factors.first_bias)
        new.second.weight[:, :rank].copy_(factors.second_weight)
        new.second.bias.copy_(factors.second_bias)
