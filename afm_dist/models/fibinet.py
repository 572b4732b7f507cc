"""FiBiNET (Huang et al., RecSys 2019): bilinear products of fields, plain and weighted by importance.

Shape legend: B batch, F categorical fields, T embedding dimension, P = F(F − 1)/2 pairs of fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afm_dist.dataset.manifest import Field
from afm_dist.models.base import CTRModel
from afm_dist.models.layers import MLP, check_sizes, flat_inputs


class SENet(nn.Module):
    """Weighs the fields by importance: v_i = a_i e_i with a = ReLU(W₂ ReLU(W₁ mean(e))) (eqs. 1 to 3).

    Args:
        n_fields: F.
        reduction: How many times narrower than F the layer between is.
    """

    def __init__(self, n_fields: int, reduction: int) -> None:
        super().__init__()
        width = max(1, n_fields // reduction)
        self.excitation = nn.Sequential(
            nn.Linear(n_fields, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, n_fields, bias=False),
            nn.ReLU(),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, F, T) -> (B, F, T)."""
        weighted: Tensor = vectors * self.excitation(vectors.mean(2)).unsqueeze(2)
        return weighted


class BilinearInteraction(nn.Module):
    """p_ij = (v_iᵀ W_ij) ⊙ v_j with a matrix for every pair i < j, type "field-interaction" (eq. 6).

    Args:
        n_fields: F.
        dim: T.
    """

    def __init__(self, n_fields: int, dim: int) -> None:
        super().__init__()
        # Pairs in the order (0, 1), (0, 2), …, (1, 2), …
        self.weight = nn.Parameter(torch.empty(n_fields * (n_fields - 1) // 2, dim, dim))
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, F, T) -> (B, P, T)."""
        partners = range(vectors.shape[1] - 1, 0, -1)
        products = [
            torch.einsum("bt,ptu->bpu", vectors[:, i], matrices) * vectors[:, i + 1 :]
            for i, matrices in enumerate(self.weight.split(list(partners)))
        ]
        return torch.cat(products, 1)


class FiBiNet(CTRModel):
    """Logit = linear(x) + MLP([bilinear(e), bilinear′(SENet(e)), numeric]) (eqs. 6, 7 and 9).

    No projection can be folded: the MLP reads products of embeddings. As in Yu et al. (KDD 2024)
    the two bilinear layers have matrices of their own, and numbers enter the MLP as they are.

    Args:
        fields: Categorical and numeric fields of the dataset, two categorical ones at least.
        embedding_dim: T.
        hidden: Widths of the MLP's hidden layers.
        dropout: Of the MLP, during training.
        reduction: Of the SENet.

    Raises:
        ValueError: fewer than two categorical fields, a width or number below 1, or a dropout that
            is no probability.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        embedding_dim: int = 16,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.5,
        reduction: int = 3,
    ) -> None:
        super().__init__(fields, embedding_dim, hidden)
        check_sizes(reduction=reduction)
        if self.n_fields < 2:
            raise ValueError("one categorical field has no partner to interact with; two are needed")
        self.senet = SENet(self.n_fields, reduction)
        self.bilinear = BilinearInteraction(self.n_fields, embedding_dim)
        self.weighted_bilinear = BilinearInteraction(self.n_fields, embedding_dim)
        pairs = self.n_fields * (self.n_fields - 1) // 2
        self.mlp = MLP(2 * pairs * embedding_dim + self.n_numeric, hidden, dropout)

    def interactions(self, codes: Tensor, vectors: Tensor, numeric: Tensor) -> Tensor:
        """MLP([bilinear(e), bilinear′(SENet(e)), numeric])."""
        del codes
        products = torch.cat([self.bilinear(vectors), self.weighted_bilinear(self.senet(vectors))], 1)
        result: Tensor = self.mlp(flat_inputs(products, numeric)).squeeze(1)
        return result
