"""What every architecture is built on: one fused table, a first-order term, and declarations.

Shape legend: B batch, F categorical fields, C numeric fields, T embedding dimension, K code dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from afm_dist.dataset.manifest import Field
from afm_dist.models.layers import check_sizes, flat_inputs, hidden_linears
from afm_dist.tables.first_order import LinearTerm
from afm_dist.tables.fused import FusedEmbedding


class CTRModel(nn.Module, ABC):
    """The part that all architectures share; an architecture adds ``mlp`` and its ``interactions``.

    Args:
        fields: Categorical and numeric fields of the dataset.
        embedding_dim: T.
        hidden: Widths of the MLP's hidden layers.

    Raises:
        ValueError: no categorical field, one without ids, or a width below 1.

    Attributes:
        folds: Which table's projection may be folded into which linear layer (paper eq. 12). Only
            right where that layer reads the embeddings themselves, first their columns, then the
            numbers (``direct_inputs``); empty where it reads products of embeddings.
        absorbs: Which table may take in the first-order weights of which term, as one more coordinate
            before it is compressed. Only right where both tables have the rows of the same fields, and
            ``forward`` gives the term the codes.
        n_fields: F.
        n_numeric: C.
        hidden: Widths of the MLP's hidden layers.
        embedding: The tables of all fields.
        linear: The first-order term.
    """

    folds: ClassVar[Mapping[str, str]] = {}
    absorbs: ClassVar[Mapping[str, str]] = {"embedding": "linear"}

    def __init__(self, fields: Sequence[Field], embedding_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim, hidden=hidden)
        categorical = [field for field in fields if field.kind == "categorical"]
        if not categorical:
            raise ValueError("the dataset has no categorical field, so there is nothing to embed")
        for field in categorical:
            if field.cardinality < 1:
                raise ValueError(
                    f"field {field.name!r} has cardinality {field.cardinality}: a table has at least one row"
                )
        cardinalities = [field.cardinality for field in categorical]
        self.n_fields = len(categorical)
        self.n_numeric = len(fields) - len(categorical)
        self.hidden = tuple(hidden)
        self.embedding = FusedEmbedding([f.name for f in categorical], cardinalities, embedding_dim)
        self.linear = LinearTerm(cardinalities, self.n_numeric, names=self.embedding.names)

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        """Ids (B, F) and numbers (B, C) -> logits (B,): the first-order term and the interactions."""
        codes, vectors = self.embedding(ids)
        logits: Tensor = self.linear(ids, numeric, codes) + self.interactions(codes, vectors, numeric)
        return logits

    @abstractmethod
    def interactions(self, codes: Tensor, vectors: Tensor, numeric: Tensor) -> Tensor:
        """Compute the logit without its first-order term: all that an architecture is.

        Args:
            codes: Shape (B, F, K).
            vectors: The embeddings of the codes, shape (B, F, T).
            numeric: Shape (B, C).

        Returns:
            Shape (B,).
        """

    @property
    def compressible_linears(self) -> list[str]:
        """The paper's choice: the MLP's second and third linear layers, not the first."""
        return hidden_linears("mlp", len(self.hidden))[1:3]

    @property
    def input_width(self) -> int:
        """F·T + C, the width of all embeddings and numbers side by side."""
        return self.n_fields * self.embedding.dim + self.n_numeric

    def direct_inputs(self, codes: Tensor, vectors: Tensor, numeric: Tensor) -> Tensor:
        """Make what the layer declared in ``folds`` reads: embeddings and numbers, or codes once folded.

        Args:
            codes: Shape (B, F, K), or (B, ΣK_i) where the fields have different ranks.
            vectors: Shape (B, F, T).
            numeric: Shape (B, C).

        Returns:
            Shape (B, F·T + C); (B, F·K + C) or (B, ΣK_i + C) once the table is folded.
        """
        return flat_inputs(codes if self.embedding.folded else vectors, numeric)
