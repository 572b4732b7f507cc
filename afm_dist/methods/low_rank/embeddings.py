"""How ``nn.Embedding`` and ``nn.EmbeddingBag`` are compressed (paper, section 3.3)."""

from __future__ import annotations

from torch import nn

from afm_dist.methods.low_rank.carrying import carry
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.factorizations import FACTORIZATIONS
from afm_dist.methods.low_rank.factorize import TableFactors
from afm_dist.methods.low_rank.layers import ProjectedEmbedding, ProjectedEmbeddingBag
from afm_dist.methods.low_rank.method import LowRankMethod, check_width
from afm_dist.statistics.keys import module_key
from afm_dist.statistics.statistics import Statistics


class LowRankOfEmbedding(LowRankMethod[nn.Embedding]):
    """A narrow table and a projection for a wide table; the row of ``padding_idx`` is kept as it is."""

    makes = (ProjectedEmbedding,)

    def refusal(self, module: nn.Embedding) -> str | None:
        """Refuse a table that changes while it is read."""
        return _renormalising(module)

    def build(self, name: str, module: nn.Embedding, config: LowRank) -> ProjectedEmbedding:
        """Make the narrow table with its projection."""
        check_width(name, config, module.embedding_dim)
        return ProjectedEmbedding(
            module.num_embeddings,
            module.embedding_dim,
            config.rank,
            padding_idx=module.padding_idx,
            sparse=module.sparse,
            scale_grad_by_freq=module.scale_grad_by_freq,
        )

    def fill(
        self, new: ProjectedEmbedding, name: str, module: nn.Embedding, config: LowRank, known: Statistics
    ) -> None:
        """Write the factors."""
        _fill(new, name, module, config, known)
        if new.padding is not None:
            new.padding.copy_(module.weight[module.padding_idx])

    def carried(
        self, name: str, new: ProjectedEmbedding, module: nn.Embedding, config: LowRank, known: Statistics
    ) -> Statistics:
        """Carry the statistics to the codes."""
        return _carried(name, new, config, known)


class LowRankOfEmbeddingBag(LowRankMethod[nn.EmbeddingBag]):
    """A narrow table and a projection behind the bags, which are sums of rows: P·Σ wᵢcᵢ + (Σ wᵢ)·s."""

    makes = (ProjectedEmbeddingBag,)

    def refusal(self, module: nn.EmbeddingBag) -> str | None:
        """Refuse a maximum of rows, or a table that changes while it is read."""
        if module.mode == "max":
            return (
                "has mode='max': a maximum over rows is not what a projection makes of the maximum over "
                "their codes (only mode='sum' and mode='mean' can be compressed)"
            )
        return _renormalising(module)

    def build(self, name: str, module: nn.EmbeddingBag, config: LowRank) -> ProjectedEmbeddingBag:
        """Make the narrow table with its projection."""
        check_width(name, config, module.embedding_dim)
        return ProjectedEmbeddingBag(
            module.num_embeddings,
            module.embedding_dim,
            config.rank,
            mode=module.mode,
            padding_idx=module.padding_idx,
            include_last_offset=module.include_last_offset,
            sparse=module.sparse,
            scale_grad_by_freq=module.scale_grad_by_freq,
        )

    def fill(
        self,
        new: ProjectedEmbeddingBag,
        name: str,
        module: nn.EmbeddingBag,
        config: LowRank,
        known: Statistics,
    ) -> None:
        """Write the factors, with the moments of the bags."""
        _fill(new, name, module, config, known)

    def carried(
        self,
        name: str,
        new: ProjectedEmbeddingBag,
        module: nn.EmbeddingBag,
        config: LowRank,
        known: Statistics,
    ) -> Statistics:
        """Carry the statistics of the bags to those of the codes."""
        return _carried(name, new, config, known)


def _carried(
    name: str, new: ProjectedEmbedding | ProjectedEmbeddingBag, config: LowRank, known: Statistics
) -> Statistics:
    factors = TableFactors(codes=new.codes.weight, projection=new.projection, bias=new.bias)
    encode = FACTORIZATIONS[config.factors].encoder(module_key(name), config.rank, factors, known)
    codes = module_key(f"{name}.codes")
    moments, sensitivity = carry(known, module_key(name), codes, encode.double().cpu(), new.projection)
    return known.replacing(name, moments, sensitivity, {module_key(name): codes})


def _renormalising(module: nn.Embedding | nn.EmbeddingBag) -> str | None:
    if module.max_norm is None:
        return None
    return (
        f"has max_norm={module.max_norm}: its rows change when they are looked up, which no fixed "
        "projection follows"
    )


def _fill(
    new: ProjectedEmbedding | ProjectedEmbeddingBag,
    name: str,
    module: nn.Embedding | nn.EmbeddingBag,
    config: LowRank,
    known: Statistics,
) -> None:
    table = module.weight.detach().cpu()
    factors = FACTORIZATIONS[config.factors].table(table, module_key(name), config, known)
    new.codes.weight.copy_(factors.codes)
    new.projection.copy_(factors.projection)
    new.bias.copy_(factors.bias)
