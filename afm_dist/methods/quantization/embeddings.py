"""How ``nn.Embedding`` and ``nn.EmbeddingBag`` are quantised, in users' own models or on top of low rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.methods.quantization.config import Quantization, check_fields
from afm_dist.methods.quantization.fields import Rows
from afm_dist.methods.quantization.method import QuantizationMethod, fill_field, left_alone
from afm_dist.methods.quantization.options import EXAMPLES
from afm_dist.methods.quantization.spec import Spec
from afm_dist.methods.quantization.store import QuantizedStore
from afm_dist.runtime import console
from afm_dist.statistics.keys import module_key
from afm_dist.statistics.statistics import Statistics

E = TypeVar("E", nn.Embedding, nn.EmbeddingBag)


class QuantizedRows(nn.Module):
    """The rows of one table in a store.

    Args:
        original: The table in whose place it comes.
        spec: How the rows are stored.

    Attributes:
        num_embeddings: V.
        embedding_dim: T.
        padding_idx: As of the original.
        slots: Rows that are stored; ids behind them share the last.
        store: Of one field.
    """

    def __init__(self, original: nn.Embedding | nn.EmbeddingBag, spec: Spec) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = original.num_embeddings, original.embedding_dim
        self.padding_idx = original.padding_idx
        self.slots = spec.slots(self.num_embeddings)
        layouts = spec.layouts(self.num_embeddings, self.embedding_dim)
        self.store = QuantizedStore([layouts], sparse=original.sparse)

    def look_up(self, ids: Tensor) -> Tensor:
        """Ids of any shape, (n,) in all -> rows (n, T).

        Raises:
            IndexError: an id outside the table.
        """
        flat = ids.reshape(-1, 1).long()
        outside = (flat < 0) | (flat >= self.num_embeddings)
        slots = flat.clamp(max=self.slots - 1).masked_fill(outside, self.slots)
        rows: Tensor = self.store(slots).squeeze(1)
        return rows

    @property
    def weight(self) -> Tensor:
        """The rows of all ids, shape (V, T)."""
        device = next(self.store.parameters()).device
        return self.look_up(torch.arange(self.num_embeddings, device=device))

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        return [f"store.{name}" for name, _ in self.store.named_parameters()]

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class QuantizedEmbedding(QuantizedRows):
    """An ``nn.Embedding`` with its rows in a store; the row of ``padding_idx`` is kept as it is.

    Attributes:
        padding: The row of ``padding_idx``, shape (T,); no gradient reaches it. None without such an id.
    """

    padding: Tensor | None

    def __init__(self, original: nn.Embedding, spec: Spec) -> None:
        super().__init__(original, spec)
        padding = None if self.padding_idx is None else torch.zeros(self.embedding_dim)
        self.register_buffer("padding", padding)

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape (…) -> rows (…, T)."""
        rows = self.look_up(input).view(*input.shape, self.embedding_dim)
        if self.padding is None or self.padding_idx is None:
            return rows
        return torch.where(torch.eq(input, self.padding_idx).unsqueeze(-1), self.padding, rows)


class QuantizedEmbeddingBag(QuantizedRows):
    """An ``nn.EmbeddingBag`` with its rows in a store: bags of the rows that were looked up."""

    def __init__(self, original: nn.EmbeddingBag, spec: Spec) -> None:
        super().__init__(original, spec)
        self.mode, self.include_last_offset = original.mode, original.include_last_offset

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """As of ``nn.EmbeddingBag``: ids (B, L), or ids with offsets (B,) -> (B, T)."""
        rows = self.look_up(input)
        count = len(rows)
        places = torch.arange(count, device=input.device).view_as(input)
        padding = None
        if self.padding_idx is not None:
            padding = count
            places = places.masked_fill(torch.eq(input, self.padding_idx), padding)
            rows = torch.cat([rows, rows.new_zeros(1, self.embedding_dim)])
        return functional.embedding_bag(
            places,
            rows,
            None if offsets is None else offsets.long(),
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )


class _QuantizationOfRows(QuantizationMethod[E], ABC, Generic[E]):
    """Tables of one field."""

    def examples(self, module: E) -> list[Quantization]:
        """Give one of each kind."""
        return [Quantization(store=word) for word in EXAMPLES]

    def refusal(self, module: E) -> str | None:
        """Refuse a table that changes while it is read, or whose rows are trained by how often they occur."""
        if module.max_norm is not None:
            return (
                f"has max_norm={module.max_norm}: its rows change when they are looked up, and codes do not"
            )
        if module.scale_grad_by_freq:
            return (
                "has scale_grad_by_freq=True: gradients of rows, and of quantised ones none are trained by "
                "themselves; set it to False"
            )
        return None

    def build(self, name: str, module: E, config: Quantization) -> QuantizedRows:
        """Make the table without its values."""
        check_fields(name, [], config)
        return self.empty(module, _spec(module, config))

    @abstractmethod
    def empty(self, module: E, spec: Spec) -> QuantizedRows:
        """Make a table of the type that takes the module's place."""

    def fill(self, new: Any, name: str, module: E, config: Quantization, known: Statistics) -> None:
        """Fit codes and levels."""
        rows = Rows.of(module_key(name), module.weight, known)
        spec = _spec(module, config)
        fill_field(new.store, 0, rows, spec, config)
        if isinstance(new, QuantizedEmbedding) and new.padding is not None:
            new.padding.copy_(module.weight[module.padding_idx])
        if spec != Spec.parse(config.store):
            console.warn(left_alone(f"{name}: its rows"))


class QuantizationOfEmbedding(_QuantizationOfRows[nn.Embedding]):
    """One store for the table."""

    makes = (QuantizedEmbedding,)

    def empty(self, module: nn.Embedding, spec: Spec) -> QuantizedEmbedding:
        """Make the table."""
        return QuantizedEmbedding(module, spec)


class QuantizationOfEmbeddingBag(_QuantizationOfRows[nn.EmbeddingBag]):
    """One store for the table; what is known of bags says which errors of rows count."""

    makes = (QuantizedEmbeddingBag,)

    def empty(self, module: nn.EmbeddingBag, spec: Spec) -> QuantizedEmbeddingBag:
        """Make the table."""
        return QuantizedEmbeddingBag(module, spec)


def _spec(module: nn.Embedding | nn.EmbeddingBag, config: Quantization) -> Spec:
    return Spec.parse(config.store).effective(module.num_embeddings, module.embedding_dim)
