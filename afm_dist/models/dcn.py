"""Deep & Cross Network (Wang et al., ADKDD 2017): explicit crosses beside an MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from afm_dist.dataset.manifest import Field
from afm_dist.models.base import CTRModel
from afm_dist.models.layers import MLP, check_sizes, flat_inputs


class CrossLayer(nn.Module):
    """x ↦ x₀ (xᵀw) + b + x (eq. 3).

    Args:
        width: Of x.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """Cross the network's input x₀ with this layer's x, both (B, width) -> (B, width)."""
        crossed: Tensor = first * self.linear(x) + self.bias + x
        return crossed


class DCN(CTRModel):
    """Logit = linear(x) + w·cross([e, numeric]) + MLP([e, numeric]) (eqs. 3 to 5).

    The weights of eq. 5 over both branches are ``cross_output`` and the MLP's last layer. The
    first-order term is the addition of Yu et al. (KDD 2024).

    Args:
        fields: Categorical and numeric fields of the dataset.
        embedding_dim: T.
        hidden: Widths of the MLP's hidden layers.
        dropout: Of the MLP, during training.
        cross_layers: Number of crosses; the highest order of an interaction is one more.

    Raises:
        ValueError: no categorical field, a width or number below 1, or a dropout that is no probability.

    Attributes:
        cross_layer: The type of the crosses, which is what later versions of the model change.
    """

    folds: ClassVar[Mapping[str, str]] = {"embedding": "mlp.0"}
    cross_layer: ClassVar[type[nn.Module]] = CrossLayer

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        embedding_dim: int = 16,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.5,
        cross_layers: int = 2,
    ) -> None:
        super().__init__(fields, embedding_dim, hidden)
        check_sizes(cross_layers=cross_layers)
        self.cross = nn.ModuleList(self.cross_layer(self.input_width) for _ in range(cross_layers))
        self.cross_output = nn.Linear(self.input_width, 1, bias=False)
        self.mlp = MLP(self.input_width, hidden, dropout)

    def interactions(self, codes: Tensor, vectors: Tensor, numeric: Tensor) -> Tensor:
        """w·cross([e, numeric]) + MLP([e, numeric])."""
        first = crossed = flat_inputs(vectors, numeric)
        for layer in self.cross:
            crossed = layer(first, crossed)
        deep = self.mlp(self.direct_inputs(codes, vectors, numeric))
        result: Tensor = (self.cross_output(crossed) + deep).squeeze(1)
        return result
