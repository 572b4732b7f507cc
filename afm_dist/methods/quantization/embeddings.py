"""How ``nn.Embedding`` and ``nn.EmbeddingBag`` are quantised, in users' own models or on top of low rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from torch import nn

from afm_dist.methods.quantization.config import Quantization, check_fields
from afm_dist.methods.quantization.fields import KnownRows
from afm_dist.methods.quantization.method import QuantizationMethod, fill_field, left_alone
from afm_dist.methods.quantization.options import EXAMPLES
from afm_dist.methods.quantization.spec import Spec
from afm_dist.methods.quantization.store import QuantizedStore
from afm_dist.runtime import console
from afm_dist.statistics.keys import module_key
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.embedding import EmbeddingBagTable, EmbeddingTable, IdTable
from afm_dist.tables.parts import SharedSlot

E = TypeVar("E", nn.Embedding, nn.EmbeddingBag)


class QuantizedEmbedding(EmbeddingTable):
    """An ``nn.Embedding`` with its rows in a store; the row of ``padding_idx`` is kept as it is.

    Args:
        original: The table in whose place it comes.
        spec: How the rows are stored.
    """

    def __init__(self, original: nn.Embedding, spec: Spec) -> None:
        super().__init__(
            original.num_embeddings,
            original.embedding_dim,
            **_parts(original, spec),
            padding_idx=original.padding_idx,
            sparse=original.sparse,
        )


class QuantizedEmbeddingBag(EmbeddingBagTable):
    """An ``nn.EmbeddingBag`` with its rows in a store.

    Args:
        original: The table in whose place it comes.
        spec: How the rows are stored.
    """

    def __init__(self, original: nn.EmbeddingBag, spec: Spec) -> None:
        super().__init__(
            original.num_embeddings,
            original.embedding_dim,
            mode=original.mode,
            include_last_offset=original.include_last_offset,
            **_parts(original, spec),
            padding_idx=original.padding_idx,
            sparse=original.sparse,
        )


def _parts(original: nn.Embedding | nn.EmbeddingBag, spec: Spec) -> dict[str, Any]:
    """Make address and store of a table of one field."""
    ids = original.num_embeddings
    store = QuantizedStore([spec.layouts(ids, original.embedding_dim)], sparse=original.sparse)
    shares = spec.own is not None and spec.slots(ids) < ids
    return {"address": SharedSlot([ids], [spec.own or 0]) if shares else None, "store": store}


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

    def build(self, name: str, module: E, config: Quantization) -> IdTable:
        """Make the table without its values."""
        check_fields(name, [], config)
        return self.empty(module, _spec(module, config))

    @abstractmethod
    def empty(self, module: E, spec: Spec) -> IdTable:
        """Make a table of the type that takes the module's place."""

    def fill(self, new: Any, name: str, module: E, config: Quantization, known: Statistics) -> None:
        """Fit codes and levels."""
        rows = KnownRows.of(module_key(name), module.weight, known)
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

    def refusal(self, module: nn.EmbeddingBag) -> str | None:
        """Refuse bags that are no sums, besides."""
        if module.mode == "max":
            return "has mode='max': only sums and means of rows are made of what is looked up"
        return super().refusal(module)

    def empty(self, module: nn.EmbeddingBag, spec: Spec) -> QuantizedEmbeddingBag:
        """Make the table."""
        return QuantizedEmbeddingBag(module, spec)


def _spec(module: nn.Embedding | nn.EmbeddingBag, config: Quantization) -> Spec:
    return Spec.parse(config.store).effective(module.num_embeddings, module.embedding_dim)
