"""The points of a sweep: which ranks to try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from afm_dist.compression.plan import Plan
from afm_dist.methods.low_rank.config import Factors
from afm_dist.methods.low_rank.ranks import plan_of, using

# Ranks worth trying: a layer of width M at rank M/2 has as many weights as before.
LARGEST_SHARE, SMALLEST_SHARE = 1 / 2, 1 / 64


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """The same rank in all linear layers, and the same embedding dimension in all fields.

    Attributes:
        method: Where the factors come from.
        linear_rank: Of the linear layers; None leaves them as they are.
        embedding_dim: Of the tables; None leaves them as they are.
    """

    method: Factors
    linear_rank: int | None
    embedding_dim: int | None

    @property
    def name(self) -> str:
        """``afm-r64-d2``; ``full`` stands for what is left as it is."""
        return f"{self.method}-r{self.linear_rank or 'full'}-d{self.embedding_dim or 'full'}"

    def plan(self, whole: Plan, *, table: str) -> Plan:
        """Make the plan for a model.

        Args:
            whole: All that can be done to it, of any rank.
            table: Which module is the table; the others are linear layers.
        """
        ranks = {
            entry.name: self.embedding_dim if entry.name == table else self.linear_rank
            for entry in whole.entries
        }
        return using(plan_of(whole, ranks), factors=self.method)


def default_ranks(width: int) -> list[int]:
    """Powers of two from about a 64th of a width to less than a half of it; at least one of them."""
    powers = [1 << power for power in range(width.bit_length())]
    return [rank for rank in powers if SMALLEST_SHARE * width <= rank < LARGEST_SHARE * width] or [1]


def default_dims(width: int) -> list[int]:
    """Powers of two below an embedding dimension."""
    return [1 << power for power in range(width.bit_length()) if 1 << power < width]


def grid(method: Factors, linear_ranks: Sequence[int], embedding_dims: Sequence[int]) -> Iterator[GridPoint]:
    """Every rank with every dimension, either also left as it is, but not both; ascending."""
    for rank in (*sorted(set(linear_ranks)), None):
        for dim in (*sorted(set(embedding_dims)), None):
            if rank is not None or dim is not None:
                yield GridPoint(method=method, linear_rank=rank, embedding_dim=dim)
