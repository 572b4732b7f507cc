"""What a plan says of a module of low rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from afm_dist.compression.config import MethodConfig, describe_size
from afm_dist.errors import OptionError

Activation = Literal["none", "plain", "shifted"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

# How many standard deviations below the mean score the shifted ReLU starts to cut.
DEFAULT_KAPPA = 2.0

# Each has a class in ``factorizations.py``.
Factors = Literal["afm", "svd", "weighted"]
FACTORS: tuple[Factors, ...] = get_args(Factors)


@dataclass(frozen=True, kw_only=True)
class LowRank(MethodConfig):
    """Two thin factors in place of a layer or a table.

    Attributes:
        factors: Where they come from: ``afm``, the principal components of the outputs (Yu et al., KDD
            2024); ``weighted``, those in the metric of the logit's sensitivity; ``svd``, the weights alone.
        rank: K, the inner width (layers) or code width (tables); with ``ranks`` the largest of them.
        ranks: Of each field of a fused table, where they differ; 0: only the field's mean.
        activation: What stands between the factors of a linear layer.
        kappa: Of the shifted ReLU, in standard deviations.
        folded_into: Linear layer that reads the codes directly (tables only); None: not folded.
        absorbs: First-order term whose weights the codes give, too (tables only); None: it keeps its own.
    """

    tag: ClassVar[str] = "low-rank"

    factors: Factors = "afm"
    rank: int
    ranks: Mapping[str, int] | None = None
    activation: Activation = "none"
    kappa: float = DEFAULT_KAPPA
    folded_into: str | None = None
    absorbs: str | None = None

    def __post_init__(self) -> None:
        if self.ranks is not None:
            _check_ranks(self.rank, self.ranks)
        elif type(self.rank) is not int or self.rank < 1:
            raise OptionError(f"rank {self.rank!r}: a rank is a whole number, at least 1")
        if self.factors not in FACTORS:
            raise OptionError(f"factors {self.factors!r}: choose from {', '.join(FACTORS)}")
        if self.activation not in ACTIVATIONS:
            raise OptionError(f"activation {self.activation!r}: choose from {', '.join(ACTIVATIONS)}")
        if type(self.kappa) not in (int, float) or not 0 <= self.kappa < float("inf"):
            raise OptionError(f"kappa {self.kappa!r}: a number of standard deviations, at least 0")
        for name, value in (("folded_into", self.folded_into), ("absorbs", self.absorbs)):
            if value is not None and not isinstance(value, str):
                raise OptionError(f"{name} {value!r}: the name of a module is needed")

    @property
    def label(self) -> str:
        """Name the factors: ``afm``, ``svd``, ``weighted``."""
        return self.factors

    @property
    def size(self) -> int | Mapping[str, int]:
        """Give the rank, or those of the fields."""
        return self.ranks or self.rank

    @property
    def in_words(self) -> str:
        """Say ``to 64``, or ``by field (0 for depth; 2 for 11 fields)``."""
        return describe_size(self.ranks or self.rank)

    @property
    def neighbours(self) -> list[str]:
        """Name the reader of the codes, and the absorbed first-order term."""
        return [name for name in (self.folded_into, self.absorbs) if name is not None]

    def details(self) -> dict[str, str]:
        """Give rank, activation and neighbours."""
        return {
            "Rank": str(self.rank)
            if not self.ranks
            else f"{min(self.ranks.values())} to {max(self.ranks.values())}, by field",
            "Between the factors": self.activation,
            "Folded into": self.folded_into or "–",
            "Absorbs": self.absorbs or "–",
        }

    def structure(self) -> dict[str, Any]:
        """Give the ranks, and whether there is a ReLU."""
        return {
            "ranks": self.ranks or self.rank,
            "relu": self.activation != "none",
            "neighbours": [self.folded_into, self.absorbs],
        }

    def rank_of(self, field: str | None) -> int:
        """Give the rank of one field of a fused table, or of the module."""
        return self.rank if self.ranks is None or field is None else self.ranks[field]

    def with_rank(self, rank: int | Mapping[str, int]) -> LowRank:
        """Give the same with another rank, or one for each field (equal ones are one for all)."""
        if isinstance(rank, int):
            return replace(self, rank=rank, ranks=None)
        largest = max(rank.values(), default=0)
        if largest and set(rank.values()) == {largest}:
            return replace(self, rank=largest, ranks=None)
        return replace(self, rank=largest, ranks=dict(rank))

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain values, without those that are None."""
        value = super().to_json()
        return value if self.ranks is None else value | {"ranks": dict(self.ranks)}


def _check_ranks(rank: Any, ranks: Any) -> None:
    if not isinstance(ranks, Mapping) or not ranks:
        raise OptionError(f"ranks {ranks!r}: a rank for each field is needed")
    for field, own in ranks.items():
        if type(own) is not int or own < 0:
            raise OptionError(
                f"rank {own!r} of field {field!r}: a rank is a whole number, and 0 leaves only the field's "
                "mean"
            )
    if rank != max(ranks.values()):
        raise OptionError(
            f"rank {rank!r}: with ranks by field it is the largest of them, {max(ranks.values())}"
        )
