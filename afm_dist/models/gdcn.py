"""Gated Deep Cross Network (Wang et al., CIKM 2023): DCN-V2 whose crosses pass an information gate."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from afm_dist.models.dcn import DCN


class GatedCrossLayer(nn.Module):
    """x ↦ x₀ ⊙ (W_c x + b) ⊙ σ(W_g x) + x (eq. 1).

    Args:
        width: Of x.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.gate = nn.Linear(width, width, bias=False)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """Cross the network's input x₀ with this layer's x, both (B, width) -> (B, width)."""
        crossed: Tensor = first * self.linear(x) * torch.sigmoid(self.gate(x)) + x
        return crossed


class GDCN(DCN):
    """Logit = linear(x) + w·cross([e, numeric]) + MLP([e, numeric]): the paper's parallel GDCN-P.

    Args and Raises: as in ``DCN``.
    """

    cross_layer: ClassVar[type[nn.Module]] = GatedCrossLayer
