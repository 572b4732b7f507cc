"""How ``nn.Embedding`` and ``nn.EmbeddingBag`` are compressed (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from afm_dist.compression.handler import Handler, Observation, check_width
from afm_dist.compression.layers import ProjectedEmbedding, ProjectedEmbeddingBag, bag_weights
from afm_dist.compression.methods import FACTORIZATIONS
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import PlanEntry
from afm_dist.compression.ranks import module_key


class EmbeddingHandler(Handler[nn.Embedding]):
    """A narrow table and a projection for a wide table; the row of ``padding_idx`` is kept as it is."""

    makes = (ProjectedEmbedding,)

    def refusal(self, module: nn.Embedding) -> str | None:
        """A table that changes while it is read."""
        return _renormalising(module)

    def widths(self, name: str, module: nn.Embedding) -> Mapping[str, int]:
        """The looked-up rows."""
        return {module_key(name): module.embedding_dim}

    def observe(
        self, name: str, module: nn.Embedding, output: Tensor, input: Tensor
    ) -> Iterator[Observation]:
        """Every looked-up row but padding; narrow, so float64 costs little and agrees with the counts."""
        rows = output.reshape(-1, output.shape[-1])
        if module.padding_idx is not None:
            rows = rows[input.reshape(-1) != module.padding_idx]
        yield Observation(module_key(name), rows.double())

    def build(self, module: nn.Embedding, entry: PlanEntry) -> ProjectedEmbedding:
        """The narrow table with its projection."""
        check_width(entry, module.embedding_dim)
        return ProjectedEmbedding(
            module.num_embeddings,
            module.embedding_dim,
            entry.rank,
            padding_idx=module.padding_idx,
            sparse=module.sparse,
            scale_grad_by_freq=module.scale_grad_by_freq,
        )

    def fill(
        self, new: ProjectedEmbedding, module: nn.Embedding, entry: PlanEntry, known: OutputStatistics
    ) -> None:
        """Factors by the entry's method."""
        _fill(new, module, entry, known)
        if new.padding is not None:
            new.padding.copy_(module.weight[module.padding_idx])


class EmbeddingBagHandler(Handler[nn.EmbeddingBag]):
    """A narrow table and a projection behind the bags, which are sums of rows: P·Σ wᵢcᵢ + (Σ wᵢ)·s."""

    makes = (ProjectedEmbeddingBag,)

    def refusal(self, module: nn.EmbeddingBag) -> str | None:
        """A maximum of rows, or a table that changes while it is read."""
        if module.mode == "max":
            return (
                "has mode='max': a maximum over rows is not what a projection makes of the maximum over "
                "their codes (only mode='sum' and mode='mean' can be compressed)"
            )
        return _renormalising(module)

    def widths(self, name: str, module: nn.EmbeddingBag) -> Mapping[str, int]:
        """The bags."""
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
        """Every bag as the weighted sum of rows that it is."""
        weights = bag_weights(module, input, offsets, per_sample_weights, dtype=torch.float64)
        yield Observation(module_key(name), output, weights)

    def build(self, module: nn.EmbeddingBag, entry: PlanEntry) -> ProjectedEmbeddingBag:
        """The narrow table with its projection."""
        check_width(entry, module.embedding_dim)
        return ProjectedEmbeddingBag(
            module.num_embeddings,
            module.embedding_dim,
            entry.rank,
            mode=module.mode,
            padding_idx=module.padding_idx,
            include_last_offset=module.include_last_offset,
            sparse=module.sparse,
            scale_grad_by_freq=module.scale_grad_by_freq,
        )

    def fill(
        self,
        new: ProjectedEmbeddingBag,
        module: nn.EmbeddingBag,
        entry: PlanEntry,
        known: OutputStatistics,
    ) -> None:
        """Factors by the entry's method, with the moments of the bags."""
        _fill(new, module, entry, known)


def _renormalising(module: nn.Embedding | nn.EmbeddingBag) -> str | None:
    if module.max_norm is None:
        return None
    return (
        f"has max_norm={module.max_norm}: its rows change when they are looked up, which no fixed "
        "projection follows"
    )


def _fill(
    new: ProjectedEmbedding | ProjectedEmbeddingBag,
    module: nn.Embedding | nn.EmbeddingBag,
    entry: PlanEntry,
    known: OutputStatistics,
) -> None:
    table = module.weight.detach().cpu()
    factors = FACTORIZATIONS[entry.method].table(table, module_key(entry.name), entry, known)
    new.codes.weight.copy_(factors.codes)
    new.projection.copy_(factors.projection)
    new.bias.copy_(factors.bias)
