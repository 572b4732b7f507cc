"""What takes the place of a user's ``nn.Embedding`` and ``nn.EmbeddingBag``: address, store and decode.

They answer what a model may ask of the original: its sizes and options, and ``weight``, made at each access
and differentiable with respect to what it is made of. (To write into it changes nothing.)

Shape legend: V ids, K numbers of a slot, T embedding dimension, B bags, L ids of a bag, n ids.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.tables.parts import Address, Store


class IdTable(nn.Module):
    """A table of one field: its ids have slots, slots have K numbers, and a projection makes T of them.

    Args:
        kind: ``nn.Embedding`` or ``nn.EmbeddingBag``: what holds plain numbers.
        num_embeddings: V.
        embedding_dim: T, the dimension the rest of the model sees.
        code_dim: K; None: T, without a projection.
        address: Takes ids to slots, of its only field; None: each id has its own.
        store: Holds the numbers of the slots, of one field; None: ``codes`` does.
        options: Of ``kind``; ``padding_idx``, ``sparse`` and ``scale_grad_by_freq`` are answered.

    Attributes:
        codes: Plain numbers of the slots; None with a ``store``.
        projection: Shape (T, K); None without.
        bias: Shape (T,); None without a projection.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["weight"]

    codes: Any
    projection: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        kind: type[nn.Embedding | nn.EmbeddingBag],
        num_embeddings: int,
        embedding_dim: int,
        *,
        code_dim: int | None,
        address: Address | None,
        store: Store | None,
        **options: Any,
    ) -> None:
        super().__init__()
        width = embedding_dim if code_dim is None else code_dim
        slots = num_embeddings if address is None else address.slots[0]
        if store is not None and store.width != width:
            raise ValueError(f"a store of width {store.width} for codes of {width} numbers")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = _positive(options.get("padding_idx"), num_embeddings)
        self.max_norm: float | None = None
        self.norm_type = 2.0
        self.sparse = bool(options.get("sparse", False))
        self.scale_grad_by_freq = bool(options.get("scale_grad_by_freq", False))
        if address is not None:
            # A slot that other ids share is no row of padding.
            options = {**options, "padding_idx": None}
        self.codes = kind(slots, width, **options) if store is None else None
        self.address = address
        self.store = store
        if code_dim is None:
            self.register_parameter("projection", None)
            self.register_parameter("bias", None)
        else:
            self.projection = nn.Parameter(torch.empty(embedding_dim, code_dim))
            self.bias = nn.Parameter(torch.zeros(embedding_dim))
            nn.init.xavier_uniform_(self.projection)

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        dense = [] if self.store is None else [f"store.{name}" for name, _ in self.store.named_parameters()]
        return dense if self.projection is None else [*dense, "projection", "bias"]

    @torch.jit.unused
    def looked_up(self, ids: Tensor) -> Tensor:
        """Take ids through address and store, shape (n,) -> codes (n, K).

        Raises:
            IndexError: an id outside the table.
        """
        outside = (ids < 0) | (ids >= self.num_embeddings)
        slots, count = ids, self.num_embeddings
        if self.address is not None:
            slots, count = self.address.of_field(0, ids), self.address.slots[0]
        slots = slots.masked_fill(outside, count)
        if self.store is None:
            return functional.embedding(
                slots, self.codes.weight, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse
            )
        codes: Tensor = self.store(slots[:, None])
        return codes[:, 0]

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return next(tensor.device for tensor in [*self.parameters(), *self.buffers()])

    def extra_repr(self) -> str:
        """Describe the module for ``print(model)``."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class EmbeddingTable(IdTable):
    """Takes the place of an ``nn.Embedding``.

    Args:
        num_embeddings: V.
        embedding_dim: T.
        code_dim: K; None: T, without a projection.
        address: Takes ids to slots; None: each id has its own.
        store: Holds the numbers of the slots; None: they are ``codes.weight``.
        options: Of ``nn.Embedding``, but for ``max_norm``.

    Attributes:
        padding: The row of ``padding_idx``, kept as it was, shape (T,): no gradient reaches it, and none
            reaches the projection through it. None without such an id.
    """

    padding: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        code_dim: int | None = None,
        address: Address | None = None,
        store: Store | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            nn.Embedding,
            num_embeddings,
            embedding_dim,
            code_dim=code_dim,
            address=address,
            store=store,
            **options,
        )
        self.register_buffer("padding", None if self.padding_idx is None else torch.zeros(embedding_dim))

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape (…) -> embeddings (…, T)."""
        if self.address is None and self.store is None:
            vectors: Tensor = self.codes(input)
        else:
            codes = self.looked_up(input.reshape(-1))
            vectors = codes.view(*input.shape, codes.shape[1])
        if self.projection is not None:
            vectors = functional.linear(vectors, self.projection, self.bias)
        if self.padding is None or self.padding_idx is None:
            return vectors
        padded = torch.eq(input, self.padding_idx).unsqueeze(-1)
        return torch.where(padded, self.padding, vectors)

    @property
    def weight(self) -> Tensor:
        """The wide table, shape (V, T)."""
        rows: Tensor = self(torch.arange(self.num_embeddings, device=self.device))
        return rows


class EmbeddingBagTable(IdTable):
    """Takes the place of an ``nn.EmbeddingBag``: Σ wᵢeᵢ = P·Σ wᵢcᵢ + (Σ wᵢ)·s.

    Args:
        num_embeddings: V.
        embedding_dim: T.
        mode: ``sum`` or ``mean``.
        include_last_offset: Whether offsets end with the number of all ids.
        code_dim: K; None: T, without a projection.
        address: Takes ids to slots; None: each id has its own.
        store: Holds the numbers of the slots; None: they are ``codes.weight``.
        options: Of ``nn.EmbeddingBag``, but for ``max_norm``.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        mode: str,
        include_last_offset: bool = False,
        code_dim: int | None = None,
        address: Address | None = None,
        store: Store | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            nn.EmbeddingBag,
            num_embeddings,
            embedding_dim,
            code_dim=code_dim,
            address=address,
            store=store,
            mode=mode,
            include_last_offset=include_last_offset,
            **options,
        )
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """As of ``nn.EmbeddingBag``: ids (B, L), or ids with offsets (B,) -> (B, T)."""
        if self.address is None and self.store is None:
            codes: Tensor = self.codes(input, offsets, per_sample_weights)
        else:
            codes = self._bagged(input, offsets, per_sample_weights)
        if self.projection is None or self.bias is None:
            return codes
        weights = bag_weights(self, input, offsets, per_sample_weights, dtype=codes.dtype)
        return functional.linear(codes, self.projection) + torch.outer(weights, self.bias)

    def _bagged(self, input: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> Tensor:
        """Sum the codes of each bag, or average them, shape (B, K)."""
        if self.mode == "mean" and per_sample_weights is not None:
            raise NotImplementedError("per_sample_weights are for mode='sum' only, as of nn.EmbeddingBag")
        rows = self.looked_up(input.reshape(-1))
        weights = (
            torch.ones_like(input, dtype=rows.dtype) if per_sample_weights is None else per_sample_weights
        )
        if self.padding_idx is not None:
            weights = weights * (input != self.padding_idx)
        sums = _sums(rows, weights, offsets, self.include_last_offset)
        if self.mode == "sum":
            return sums
        ones = torch.ones(input.numel(), 1, dtype=rows.dtype, device=rows.device)
        return sums / _sums(ones, weights, offsets, self.include_last_offset).clamp(min=1)

    @property
    def weight(self) -> Tensor:
        """The wide table, shape (V, T)."""
        if self.address is None and self.store is None:
            codes: Tensor = self.codes.weight
        else:
            codes = self.looked_up(torch.arange(self.num_embeddings, device=self.device))
        if self.projection is None:
            return codes
        return functional.linear(codes, self.projection, self.bias)


def _sums(rows: Tensor, weights: Tensor, offsets: Tensor | None, include_last_offset: bool) -> Tensor:
    """Sum rows (n, K) with weights, of the shape of the ids, over each bag."""
    places = torch.arange(len(rows), device=rows.device).view(weights.shape)
    return functional.embedding_bag(
        places,
        rows,
        offsets,
        mode="sum",
        per_sample_weights=weights.to(rows.dtype),
        include_last_offset=include_last_offset,
    )


def _positive(padding_idx: int | None, num_embeddings: int) -> int | None:
    return padding_idx if padding_idx is None or padding_idx >= 0 else num_embeddings + padding_idx


class Bags(Protocol):
    """What says how bags are made: an ``nn.EmbeddingBag``, or what takes its place."""

    mode: str
    padding_idx: int | None
    include_last_offset: bool


def bag_weights(
    bag: Bags,
    input: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> Tensor:
    """Sum the weights with which rows of a table enter each bag, shape (B,).

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
