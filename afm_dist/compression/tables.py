"""How ``nn.Embedding`` is compressed (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from afm_dist.compression.factorize import TableFactors, afm_table, svd_table
from afm_dist.compression.handler import Handler, Observation, check_width, spectrum_of
from afm_dist.compression.layers import ProjectedEmbedding
from afm_dist.compression.plan import PlanEntry
from afm_dist.compression.ranks import module_key
from afm_dist.statistics.moments import Moments


def table_factors(table: Tensor, key: str, entry: PlanEntry, moments: Mapping[str, Moments]) -> TableFactors:
    """Codes, projection and bias of a table by the entry's method.

    Args:
        table: Shape (V, T).
        key: Name of its moments.
        entry: Method and rank.
        moments: By name.

    Raises:
        OptionError: moments that are missing or of another width.
    """
    if entry.method == "afm":
        return afm_table(table, spectrum_of(moments, key, table.shape[1]), entry.rank)
    return svd_table(table, entry.rank)


def _renormalising(module: nn.Embedding) -> str | None:
    if module.max_norm is None:
        return None
    return (
        f"has max_norm={module.max_norm}: its rows change when they are looked up, which no fixed "
        "projection follows"
    )


class EmbeddingHandler(Handler[nn.Embedding]):
    """A narrow table and a projection for a wide table."""

    def refusal(self, module: nn.Embedding) -> str | None:
        """A table that changes while it is read."""
        return _renormalising(module)

    def widths(self, name: str, module: nn.Embedding) -> Mapping[str, int]:
        """The looked-up rows."""
        return {module_key(name): module.embedding_dim}

    def observe(
        self, name: str, module: nn.Embedding, output: Tensor, *args: Any, **kwargs: Any
    ) -> Iterator[Observation]:
        """Every looked-up row; narrow, so float64 costs little and agrees with the counts to 1e-9."""
        yield Observation(module_key(name), output.reshape(-1, output.shape[-1]).double())

    def build(self, module: nn.Embedding, entry: PlanEntry) -> ProjectedEmbedding:
        """The narrow table with its projection."""
        check_width(entry, module.embedding_dim)
        return ProjectedEmbedding(
            module.num_embeddings, module.embedding_dim, entry.rank, sparse=module.sparse
        )

    def fill(
        self, new: ProjectedEmbedding, module: nn.Embedding, entry: PlanEntry, moments: Mapping[str, Moments]
    ) -> None:
        """Factors of eq. 10, or of the SVD."""
        factors = table_factors(module.weight.detach().cpu(), module_key(entry.name), entry, moments)
        new.codes.weight.copy_(factors.codes)
        new.projection.copy_(factors.projection)
        new.bias.copy_(factors.bias)
