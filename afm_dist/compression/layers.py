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

    def forward(self, input: Tensor) -> Tensor:
        """(…, N) -> (…, M)."""
        scores = self.first(input)
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
        padding_idx: The id whose row is fixed, as in ``nn.Embedding``; None: there is none.
        sparse: Whether the table's gradients are sparse.
        scale_grad_by_freq: Whether they are divided by how often a row occurs in the batch.

    Attributes:
        padding: The row of ``padding_idx``, kept as it was, shape (T,): no gradient reaches it, and
            none reaches the projection through it. None without such an id.
    """

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

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape (…) -> embeddings (…, T)."""
        vectors = functional.linear(self.codes(input), self.projection, self.bias)
        if self.padding is None or self.codes.padding_idx is None:
            return vectors
        padded = torch.eq(input, self.codes.padding_idx).unsqueeze(-1)
        return torch.where(padded, self.padding, vectors)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rank}"


class ProjectedEmbeddingBag(nn.Module):
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

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """As of ``nn.EmbeddingBag``: ids (B, L), or ids with offsets (B,) -> (B, T)."""
        codes = self.codes(input, offsets, per_sample_weights)
        weights = bag_weights(self.codes, input, offsets, per_sample_weights, dtype=codes.dtype)
        return functional.linear(codes, self.projection) + torch.outer(weights, self.bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rank}"


def bag_weights(
    bag: nn.EmbeddingBag,
    input: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> Tensor:
    """With how much weight in all the rows of a table enter each bag, shape (B,).

    In mode ``sum`` the sum of the weights of its ids (1 each when none are given), in mode ``mean`` 1;
    without those of ``padding_idx``; 0 for an empty bag.

    Args:
        bag: Says how bags are made.
        input: As in its ``forward``.
        offsets: As in its ``forward``.
        per_sample_weights: As in its ``forward``.
        dtype: Of the result.
    """
    if per_sample_weights is None:
        weights = torch.ones_like(input, dtype=dtype)
    else:
        weights = per_sample_weights.to(dtype)
    if bag.padding_idx is not None:
        weights = weights * (input != bag.padding_idx)
    # A bag over a table of a single 1 adds up the weights.
    totals = functional.embedding_bag(
        torch.zeros_like(input),
        torch.ones(1, 1, dtype=dtype, device=input.device),
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=bag.include_last_offset,
    ).squeeze(1)
    return (totals if bag.mode == "sum" else totals > 0).to(dtype)
