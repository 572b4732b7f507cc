"""DeepFM (Guo et al., IJCAI 2017): first-order term, factorization machine and MLP, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from afm_dist.dataset.manifest import Field
from afm_dist.embedding import FusedEmbedding
from afm_dist.models.layers import MLP, LinearTerm, factorization_machine, hidden_linears


class DeepFM(nn.Module):
    """Logit = linear(x) + FM(e) + MLP([e, numeric]).

    Args:
        fields: Categorical and numeric fields of the dataset.
        embedding_dim: T.
        hidden: Widths of the MLP's hidden layers.
        dropout: Of the MLP, during training.

    Raises:
        ValueError: a width below 1, or a dropout that is no probability.

    Attributes:
        folds: Which table's projection may be folded into which linear layer (paper eq. 12):
            the MLP reads the embeddings directly, first its columns, then the numbers.
    """

    folds: ClassVar[Mapping[str, str]] = {"embedding": "mlp.0"}

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        embedding_dim: int = 16,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if min((embedding_dim, *hidden)) < 1:
            raise ValueError(f"embedding_dim {embedding_dim}, hidden {tuple(hidden)}: widths are at least 1")
        categorical = [field for field in fields if field.kind == "categorical"]
        n_numeric = len(fields) - len(categorical)
        cardinalities = [field.cardinality for field in categorical]
        self.hidden = tuple(hidden)
        self.embedding = FusedEmbedding([f.name for f in categorical], cardinalities, embedding_dim)
        self.linear = LinearTerm(cardinalities, n_numeric)
        self.mlp = MLP(len(categorical) * embedding_dim + n_numeric, hidden, dropout)

    @property
    def compressible_linears(self) -> list[str]:
        """The paper's choice: the second and third linear layers, not the first."""
        return hidden_linears("mlp", len(self.hidden))[1:3]

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        """Ids (B, F) and numbers (B, C) -> logits (B,)."""
        codes, vectors = self.embedding(ids)
        inputs = torch.cat([(codes if self.embedding.folded else vectors).flatten(1), numeric], 1)
        deep = self.mlp(inputs).squeeze(1)
        logits: Tensor = self.linear(ids, numeric) + factorization_machine(vectors) + deep
        return logits
