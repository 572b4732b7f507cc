"""How ``nn.Linear`` becomes two thin layers (paper, section 3.2)."""

from __future__ import annotations

from torch import nn

from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.factorizations import FACTORIZATIONS
from afm_dist.methods.low_rank.layers import LowRankLinear
from afm_dist.methods.low_rank.method import LowRankMethod, check_width
from afm_dist.statistics.keys import module_key
from afm_dist.statistics.statistics import Statistics


class LowRankOfLinear(LowRankMethod[nn.Linear]):
    """Two thin linear layers for a wide one; every position of a sequence is a row."""

    makes = (LowRankLinear,)

    def build(self, name: str, module: nn.Linear, config: LowRank) -> LowRankLinear:
        """Make the two layers."""
        check_width(name, config, module.out_features)
        return LowRankLinear(module.in_features, module.out_features, config.rank, config.activation)

    def fill(
        self, new: LowRankLinear, name: str, module: nn.Linear, config: LowRank, known: Statistics
    ) -> None:
        """Write the factors."""
        weight = module.weight.cpu()
        bias = None if module.bias is None else module.bias.cpu()
        factors = FACTORIZATIONS[config.factors].linear(weight, bias, module_key(name), config, known)
        rank = factors.first_weight.shape[0]
        for target in (new.first.weight, new.second.weight):
            target.zero_()  # an SVD of a layer with fewer inputs than the rank leaves zeros
        new.first.weight[:rank].copy_(factors.first_weight)
        if factors.first_bias is not None:
            new.first.bias.zero_()
            new.first.bias[:rank].copy_(factors.first_bias)
        new.second.weight[:, :rank].copy_(factors.second_weight)
        new.second.bias.copy_(factors.second_bias)
