"""What compressed modules become: low-rank drop-in replacements for torch's own layers.

They answer what a model may ask of the original: its sizes and options, and ``weight`` and ``bias``,
multiplied out of the factors at each access and differentiable with respect to them. (To write into such a
weight changes nothing.)
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.methods.low_rank.config import Activation
from afm_dist.statistics.outputs import bag_weights


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
        """What ``print(model)`` shows."""
        return f"rank={self.rank}, activation={self.activation}"


class _ProjectedTable(nn.Module):
    """What a narrow table says of the wide one in whose place it is."""

    __jit_unused_properties__: ClassVar[list[str]] = [
        "weight",
        "padding_idx",
        "max_norm",
        "norm_type",
        "sparse",
        "scale_grad_by_freq",
    ]

    codes: nn.Embedding | nn.EmbeddingBag

    @property
    def padding_idx(self) -> int | None:
        """As of ``nn.Embedding``."""
        return self.codes.padding_idx

    @property
    def max_norm(self) -> None:
        """Tables with one are not compressed."""
        return None

    @property
    def norm_type(self) -> float:
        """As of ``nn.Embedding``."""
        return self.codes.norm_type

    @property
    def sparse(self) -> bool:
        """As of ``nn.Embedding``."""
        return self.codes.sparse

    @property
    def scale_grad_by_freq(self) -> bool:
        """As of ``nn.Embedding``."""
        return self.codes.scale_grad_by_freq


class ProjectedEmbedding(_ProjectedTable):
    """A narrow ``nn.Embedding`` and a projection in place of a wide one (paper eq. 10).

    Args:
        num_embeddings: V.
        embedding_dim: T, the dimension the rest of the model sees.
        rank: K, the width of the stored table.
        padding_idx: The id whose row is fixed, as in ``nn.Embedding``; None: there is none.
        sparse: Whether the table's gradients are sparse.
        scale_grad_by_freq: Whether they are divided by how often a row occurs in the batch.

    Attributes:
        padding: The row of ``padding_idx``, kept as it was, shape (T,): no gradient reaches it, and
            none reaches the projection through it. None without such an id.
    """

    codes: nn.Embedding
    padding: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        *,
        padding_idx: int | None = None,
        sparse: bool = False,
        scale_grad_by_freq: bool = False,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.rank = rank
        self.codes = nn.Embedding(
            num_embeddings,
            rank,
            padding_idx=padding_idx,
            sparse=sparse,
            scale_grad_by_freq=scale_grad_by_freq,
        )
        self.projection = nn.Parameter(torch.empty(embedding_dim, rank))
        self.bias = nn.Parameter(torch.zeros(embedding_dim))
        nn.init.xavier_uniform_(self.projection)
        self.register_buffer("padding", None if padding_idx is None else torch.zeros(embedding_dim))

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        return ["projection", "bias"]

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape (…) -> embeddings (…, T)."""
        vectors = functional.linear(self.codes(input), self.projection, self.bias)
        if self.padding is None or self.codes.padding_idx is None:
            return vectors
        padded = torch.eq(input, self.codes.padding_idx).unsqueeze(-1)
        return torch.where(padded, self.padding, vectors)

    @property
    def weight(self) -> Tensor:
        """The wide table, shape (V, T)."""
        rows: Tensor = self(torch.arange(self.num_embeddings, device=self.projection.device))
        return rows

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rank}"


class ProjectedEmbeddingBag(_ProjectedTable):
    """A narrow ``nn.EmbeddingBag`` and a projection in place of a wide one: Σ wᵢeᵢ ≈ P·Σ wᵢcᵢ + (Σ wᵢ)·s.

    Args:
        num_embeddings: V.
        embedding_dim: T, the dimension the rest of the model sees.
        rank: K, the width of the stored table.
        mode: ``sum`` or ``mean``.
        padding_idx: The id that bags leave out; None: there is none.
        include_last_offset: Whether offsets end with the number of all ids.
        sparse: Whether the table's gradients are sparse.
        scale_grad_by_freq: Whether they are divided by how often a row occurs in the batch.
    """

    codes: nn.EmbeddingBag

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        *,
        mode: str,
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        sparse: bool = False,
        scale_grad_by_freq: bool = False,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.rank = rank
        self.mode = mode
        self.include_last_offset = include_last_offset
        self.codes = nn.EmbeddingBag(
            num_embeddings,
            rank,
            mode=mode,
            padding_idx=padding_idx,
            include_last_offset=include_last_offset,
            sparse=sparse,
            scale_grad_by_freq=scale_grad_by_freq,
        )
        self.projection = nn.Parameter(torch.empty(embedding_dim, rank))
        self.bias = nn.Parameter(torch.zeros(embedding_dim))
        nn.init.xavier_uniform_(self.projection)

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        return ["projection", "bias"]

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """As of ``nn.EmbeddingBag``: ids (B, L), or ids with offsets (B,) -> (B, T)."""
        codes = self.codes(input, offsets, per_sample_weights)
        weights = bag_weights(self.codes, input, offsets, per_sample_weights, dtype=codes.dtype)
        return functional.linear(codes, self.projection) + torch.outer(weights, self.bias)

    @property
    def weight(self) -> Tensor:
        """The wide table, shape (V, T)."""
        return functional.linear(self.codes.weight, self.projection, self.bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rank}"
