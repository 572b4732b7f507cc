"""What a call of a module contributes to the statistics of its outputs: one ``Outputs`` a type of module.

Statistics know no module types themselves: a new type is one subclass of ``Outputs`` and one
``register_outputs``. Methods of compression build on these statistics; what they make of a module is no
concern of this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from afm_dist.statistics.keys import field_key, module_key
from afm_dist.tables.embedding import bag_weights
from afm_dist.tables.fused import FusedEmbedding

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Observation:
    """What one call of a module contributes to some moments.

    Attributes:
        key: Name of the moments.
        rows: Shape (B, M).
        weights: Where the rows are weighted sums, the sum of each one's weights, shape (B,).
    """

    key: str
    rows: Tensor
    weights: Tensor | None = None


class Outputs(ABC, Generic[M]):
    """How the outputs of modules of one type are read. ``name`` is always the module's name in its model."""

    @abstractmethod
    def widths(self, name: str, module: M) -> Mapping[str, int]:
        """List the statistics of a module: their names and widths."""

    @abstractmethod
    def observe(self, name: str, module: M, output: Any, *args: Any, **kwargs: Any) -> Iterator[Observation]:
        """Yield what a call adds to the statistics.

        Args:
            name: Of the module.
            module: That was called.
            output: What it returned, or a gradient of the same shape.
            args: What it was called with.
            kwargs: What it was called with.
        """


class LinearOutputs(Outputs[nn.Linear]):
    """Every position of a sequence is a row."""

    def widths(self, name: str, module: nn.Linear) -> Mapping[str, int]:
        """List the outputs."""
        return {module_key(name): module.out_features}

    def observe(
        self, name: str, module: nn.Linear, output: Tensor, *args: Any, **kwargs: Any
    ) -> Iterator[Observation]:
        """Yield every output."""
        yield Observation(module_key(name), output.reshape(-1, output.shape[-1]))


class EmbeddingOutputs(Outputs[nn.Embedding]):
    """Looked-up rows, but for that of ``padding_idx``."""

    def widths(self, name: str, module: nn.Embedding) -> Mapping[str, int]:
        """List the looked-up rows."""
        return {module_key(name): module.embedding_dim}

    def observe(
        self, name: str, module: nn.Embedding, output: Tensor, input: Tensor
    ) -> Iterator[Observation]:
        """Yield every looked-up row; narrow, so float64 costs little and agrees with the counts."""
        rows = output.reshape(-1, output.shape[-1])
        if module.padding_idx is not None:
            rows = rows[input.reshape(-1) != module.padding_idx]
        yield Observation(module_key(name), rows.double())


class EmbeddingBagOutputs(Outputs[nn.EmbeddingBag]):
    """Bags, weighted sums of rows."""

    def widths(self, name: str, module: nn.EmbeddingBag) -> Mapping[str, int]:
        """List the bags."""
        return {module_key(name): module.embedding_dim}

    def observe(
        self,
        name: str,
        module: nn.EmbeddingBag,
        output: Tensor,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Iterator[Observation]:
        """Yield every bag as the weighted sum of rows that it is."""
        weights = bag_weights(module, input, offsets, per_sample_weights, dtype=torch.float64)
        yield Observation(module_key(name), output, weights)


class FusedOutputs(Outputs[FusedEmbedding]):
    """The embeddings of each field have statistics of their own."""

    def widths(self, name: str, module: FusedEmbedding) -> Mapping[str, int]:
        """List the fields."""
        return {field_key(name, field): module.dim for field in module.names}

    def observe(
        self, name: str, module: FusedEmbedding, output: tuple[Tensor, Tensor], *args: Any, **kwargs: Any
    ) -> Iterator[Observation]:
        """Yield each field's embeddings; narrow, so float64 costs little and agrees with the counts."""
        _, vectors = output
        for i, field in enumerate(module.names):
            yield Observation(field_key(name, field), vectors[:, i].double())


_OUTPUTS: dict[type[nn.Module], Outputs[Any]] = {
    nn.Linear: LinearOutputs(),
    nn.Embedding: EmbeddingOutputs(),
    nn.EmbeddingBag: EmbeddingBagOutputs(),
    FusedEmbedding: FusedOutputs(),
}


def register_outputs(module_type: type[nn.Module], outputs: Outputs[Any]) -> None:
    """Say how the outputs of a type of module are read.

    Args:
        module_type: Exactly this type; a subclass may compute something else.
        outputs: Of all modules of this type.
    """
    _OUTPUTS[module_type] = outputs


def outputs_of(module: nn.Module) -> Outputs[Any]:
    """Find how the outputs of a module are read.

    Raises:
        KeyError: nothing is registered for its type.
    """
    return _OUTPUTS[type(module)]


def has_outputs(module: nn.Module) -> bool:
    """Tell whether a module's type, exactly, is registered."""
    return type(module) in _OUTPUTS
