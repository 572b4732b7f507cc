"""DeepFM (Guo et al., IJCAI 2017): first-order term, factorization machine and MLP, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from afm_dist.dataset.manifest import Field
from afm_dist.models.base import CTRModel
from afm_dist.models.layers import MLP, factorization_machine


class DeepFM(CTRModel):
    """Logit = linear(x) + FM(e) + MLP([e, numeric]) (eqs. 1 to 4).

    Args:
        fields: Categorical and numeric fields of the dataset.
        embedding_dim: T.
        hidden: Widths of the MLP's hidden layers.
        dropout: Of the MLP, during training.

    Raises:
        ValueError: no categorical field, a width below 1, or a dropout that is no probability.
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
        super().__init__(fields, embedding_dim, hidden)
        self.mlp = MLP(self.input_width, hidden, dropout)

    def interactions(self, codes: Tensor, vectors: Tensor, numeric: Tensor) -> Tensor:
        """FM(e) + MLP([e, numeric])."""
        deep: Tensor = self.mlp(self.direct_inputs(codes, vectors, numeric)).squeeze(1)
        return factorization_machine(vectors) + deep
