"""What compressed modules become: low-rank drop-in replacements for torch's own layers.

They answer what a model may ask of the original: its sizes and options, and ``weight`` and ``bias``,
multiplied out of the factors at each access and differentiable with respect to them. (To write into such a
weight changes nothing.)
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from afm_dist.methods.low_rank.config import Activation
from afm_dist.tables.embedding import EmbeddingBagTable, EmbeddingTable


class LowRankLinear(nn.Module):
    """Two linear layers in place of one, with an optional ReLU between them (paper, section 3.2).

    Args:
        in_features: N.
        out_features: M.
        rank: K.
        activation: ``none``, ``plain`` (ReLU) or ``shifted`` (ReLU; the first layer has a bias
            that moves the scores into its linear part).
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias"]

    def __init__(self, in_features: int, out_features: int, rank: int, activation: Activation) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.activation = activation
        self.first = nn.Linear(in_features, rank, bias=activation == "shifted")
        self.second = nn.Linear(rank, out_features)

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        return [name for name, _ in self.named_parameters()]

    def forward(self, input: Tensor) -> Tensor:
        """(…, N) -> (…, M)."""
        scores = self.first(input)
        if self.activation != "none":
            scores = functional.relu(scores)
        result: Tensor = self.second(scores)
        return result

    @property
    def weight(self) -> Tensor:
        """The weight of the layer that both are, shape (M, N).

        Raises:
            AttributeError: with a ReLU between them there is none.
        """
        self._check_linear("weight")
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> Tensor:
        """Its bias, shape (M,).

        Raises:
            AttributeError: as of ``weight``.
        """
        self._check_linear("bias")
        return self.second.bias

    def _check_linear(self, key: str) -> None:
        if self.activation != "none":
            raise AttributeError(
                f"{key}: a layer compressed with activation {self.activation!r} has a ReLU between its "
                "factors, and so no weight and bias of its own; where a model reads them, plan it with "
                "activation='none', or leave it out"
            )

    def __getattr__(self, name: str) -> Any:
        """What torch looks for last, also after an ``AttributeError`` of a property, whose reason is kept."""
        if name in self.__jit_unused_properties__:
            self._check_linear(name)
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        """Describe the module for ``print(model)``."""
        return f"rank={self.rank}, activation={self.activation}"


class ProjectedEmbedding(EmbeddingTable):
    """A narrow ``nn.Embedding`` and a projection in place of a wide one (paper eq. 10).

    Args:
        num_embeddings: V.
        embedding_dim: T, the dimension the rest of the model sees.
        rank: K, the width of the stored table.
        options: Of ``nn.Embedding``, but for ``max_norm``.
    """

    codes: nn.Embedding
    projection: nn.Parameter
    bias: nn.Parameter

    def __init__(self, num_embeddings: int, embedding_dim: int, rank: int, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, code_dim=rank, **options)
        self.rank = rank

    def extra_repr(self) -> str:
        """Describe the module for ``print(model)``."""
        return f"rank={self.rank}"


class ProjectedEmbeddingBag(EmbeddingBagTable):
    """A narrow ``nn.EmbeddingBag`` and a projection in place of a wide one: Σ wᵢeᵢ ≈ P·Σ wᵢcᵢ + (Σ wᵢ)·s.

    Args:
        num_embeddings: V.
        embedding_dim: T, the dimension the rest of the model sees.
        rank: K, the width of the stored table.
        mode: ``sum`` or ``mean``.
        options: Of ``nn.EmbeddingBag``, but for ``max_norm``.
    """

    codes: nn.EmbeddingBag
    projection: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self, num_embeddings: int, embedding_dim: int, rank: int, *, mode: str, **options: Any
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, mode=mode, code_dim=rank, **options)
        self.rank = rank

    def extra_repr(self) -> str:
        """Describe the module for ``print(model)``."""
        return f"rank={self.rank}"
