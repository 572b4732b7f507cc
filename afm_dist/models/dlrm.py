"""DLRM (Naumov et al., arXiv:1906.00091): dot products of fields and of the projected numbers.

Shape legend: B batch, F categorical fields, C numeric fields, T embedding dimension, P pairs of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from afm_dist.dataset.manifest import Field
from afm_dist.models.base import CTRModel
from afm_dist.models.layers import MLP, check_sizes


def pairwise_dots(vectors: Tensor) -> Tensor:
    """Dot products of all pairs of different vectors: (B, F, T) -> (B, F(F − 1)/2)."""
    n_vectors = vectors.shape[1]
    rows, columns = torch.tril_indices(n_vectors, n_vectors, offset=-1, device=vectors.device)
    dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
    return dots.index_select(1, rows * n_vectors + columns)


class DLRM(CTRModel):
    """Logit = linear(x) + MLP([z, dots of all pairs of z and e]), z = bottom(numeric) (section 2.2).

    ``mlp`` is the paper's top MLP. No projection can be folded: it reads products of embeddings.
    Without numeric fields there is no bottom MLP and no z. The first-order term is ours, so that
    all models have it.

    Args:
        fields: Categorical and numeric fields of the dataset.
        embedding_dim: T.
        hidden: Widths of the top MLP's hidden layers.
        dropout: Of the top MLP, during training.
        bottom: Widths of the bottom MLP's hidden layers, before its output of width T. The default
            is that of the authors' script for Criteo.

    Raises:
        ValueError: fewer than two vectors to multiply, a width below 1, or a dropout that is no
            probability.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        embedding_dim: int = 16,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.5,
        bottom: Sequence[int] = (512, 256, 64),
    ) -> None:
        super().__init__(fields, embedding_dim, hidden)
        check_sizes(bottom=bottom)
        self.bottom: nn.Sequential | None = None
        if self.n_numeric:
            widths = pairwise((self.n_numeric, *bottom, embedding_dim))
            self.bottom = nn.Sequential(*(m for i, o in widths for m in (nn.Linear(i, o), nn.ReLU())))
        n_vectors = self.n_fields + (self.bottom is not None)
        if n_vectors < 2:
            raise ValueError(
                "one categorical field and no numeric one has no partner for a dot product; "
                "two fields are needed"
            )
        pairs = n_vectors * (n_vectors - 1) // 2
        self.mlp = MLP(pairs + embedding_dim * (self.bottom is not None), hidden, dropout)

    def interactions(self, codes: Tensor, vectors: Tensor, numeric: Tensor) -> Tensor:
        """MLP([z, dots of all pairs of z and e])."""
        del codes
        if self.bottom is None:
            inputs = pairwise_dots(vectors)
        else:
            projected = self.bottom(numeric)
            dots = pairwise_dots(torch.cat([projected.unsqueeze(1), vectors], 1))
            inputs = torch.cat([projected, dots], 1)
        result: Tensor = self.mlp(inputs).squeeze(1)
        return result
