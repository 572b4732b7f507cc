"""Neural Factorization Machine (He & Chua, SIGIR 2017): an MLP on top of pooled pairwise products."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from afm_dist.dataset.manifest import Field
from afm_dist.models.base import CTRModel
from afm_dist.models.layers import MLP, bi_interaction, flat_inputs


class NFM(CTRModel):
    """Logit = linear(x) + MLP([Σ_{i<j} e_i ⊙ e_j, numeric]) (eqs. 3 and 7).

    No projection can be folded: the MLP reads products of embeddings. As in Yu et al. (KDD 2024)
    numbers enter the MLP as they are, and there is no batch normalisation.

    Args:
        fields: Categorical and numeric fields of the dataset.
        embedding_dim: T.
        hidden: Widths of the MLP's hidden layers.
        dropout: Of the MLP, during training.

    Raises:
        ValueError: no categorical field, a width below 1, or a dropout that is no probability.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        embedding_dim: int = 16,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.5,
    ) -> None:
        super().__init__(fields, embedding_dim, hidden)
        self.mlp = MLP(embedding_dim + self.n_numeric, hidden, dropout)

    def interactions(self, codes: Tensor, vectors: Tensor, numeric: Tensor) -> Tensor:
        """MLP([Σ_{i<j} e_i ⊙ e_j, numeric])."""
        del codes
        result: Tensor = self.mlp(flat_inputs(bi_interaction(vectors), numeric)).squeeze(1)
        return result
