"""What compressed modules become: low-rank drop-in replacements for torch's own layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.compression.plan import Activation


class LowRankLinear(nn.Module):
    """Two linear layers in place of one, with an optional ReLU between them (paper, section 3.2).

    Args:
        in_features: N.
        out_features: M.
        rank: K.
        activation: ``none``, ``plain`` (ReLU) or ``shifted`` (ReLU; the first layer has a bias
            that moves the scores into its linear part).
    """

    def __init__(self, in_features: int, out_features: int, rank: int, activation: Activation) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.activation = activation
        self.first = nn.Linear(in_features, rank, bias=activation == "shifted")
        self.second = nn.Linear(rank, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(…, N) -> (…, M)."""
        scores = self.first(x)
        if self.activation != "none":
            scores = functional.relu(scores)
        result: Tensor = self.second(scores)
        return result

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rank}, activation={self.activation}"


class ProjectedEmbedding(nn.Module):
    """A narrow ``nn.Embedding`` and a projection in place of a wide one (paper eq. 10).

    Args:
        num_embeddings: V.
        embedding_dim: T, the dimension the rest of the model sees.
        rank: K, the width of the stored table.
        sparse: Whether the table's gradients are sparse.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, rank: int, *, sparse: bool = False) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.rank = rank
        self.codes = nn.Embedding(num_embeddings, rank, sparse=sparse)
        self.projection = nn.Parameter(torch.empty(embedding_dim, rank))
        self.bias = nn.Parameter(torch.zeros(embedding_dim))
        nn.init.xavier_uniform_(self.projection)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape (…) -> embeddings (…, T)."""
        return functional.linear(self.codes(ids), self.projection, self.bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rank}"
