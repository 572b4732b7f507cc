"""AutoInt (Song et al., CIKM 2019): self-attention between the fields, beside an MLP (AutoInt+).

Shape legend: B batch, F categorical fields, T embedding dimension, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from afm_dist.dataset.manifest import Field
from afm_dist.models.base import CTRModel
from afm_dist.models.layers import MLP, check_sizes


class InteractingLayer(nn.Module):
    """Multi-head attention of every field to all, a residual and a ReLU (eqs. 5 to 8).

    Args:
        dim: T, of the vectors that come in and of all heads together.
        heads: H.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # W_Query, W_Key, W_Value and W_Res stacked: one product reads the vectors once.
        self.weights = nn.Linear(dim, 4 * dim, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, F, T) -> (B, F, T)."""
        query, key, value, residual = self.weights(vectors).chunk(4, -1)
        # The paper's scores are plain inner products, not divided by a square root.
        scores = self._split(query) @ self._split(key).transpose(2, 3)
        attended = (scores.softmax(-1) @ self._split(value)).transpose(1, 2).flatten(2)
        return functional.relu(attended + residual)

    def _split(self, vectors: Tensor) -> Tensor:
        """(B, F, T) -> (B, H, F, T/H)."""
        heads: Tensor = vectors.unflatten(-1, (self.heads, vectors.shape[-1] // self.heads))
        return heads.transpose(1, 2)


class AutoInt(CTRModel):
    """Logit = linear(x) + w·interacting(e) + MLP([e, numeric]) (eqs. 5 to 9).

    As in Yu et al. (KDD 2024) the heads together are as wide as the embedding, an MLP stands
    beside the attention, and numbers enter the MLP only.

    Args:
        fields: Categorical and numeric fields of the dataset.
        embedding_dim: T.
        hidden: Widths of the MLP's hidden layers.
        dropout: Of the MLP, during training.
        interacting_layers: Number of attention layers.
        heads: H; divides T.

    Raises:
        ValueError: no categorical field, a width or number below 1, heads that do not divide the
            embedding, or a dropout that is no probability.
    """

    folds: ClassVar[Mapping[str, str]] = {"embedding": "mlp.0"}

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        embedding_dim: int = 16,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.5,
        interacting_layers: int = 3,
        heads: int = 2,
    ) -> None:
        super().__init__(fields, embedding_dim, hidden)
        check_sizes(interacting_layers=interacting_layers, heads=heads)
        if embedding_dim % heads:
            raise ValueError(f"embedding_dim {embedding_dim} cannot be shared out among {heads} heads")
        self.interacting = nn.Sequential(
            *(InteractingLayer(embedding_dim, heads) for _ in range(interacting_layers))
        )
        self.interacting_output = nn.Linear(self.n_fields * embedding_dim, 1, bias=False)
        self.mlp = MLP(self.input_width, hidden, dropout)

    def interactions(self, codes: Tensor, vectors: Tensor, numeric: Tensor) -> Tensor:
        """w·interacting(e) + MLP([e, numeric])."""
        attended = self.interacting_output(self.interacting(vectors).flatten(1))
        deep = self.mlp(self.direct_inputs(codes, vectors, numeric))
        result: Tensor = (attended + deep).squeeze(1)
        return result
