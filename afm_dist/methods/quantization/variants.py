"""The variants of quantisation that jobs compare: whole numbers, and stores that a budget chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from afm_dist.compression.plan import TABLE, Plan, PlanEntry
from afm_dist.compression.registry import variants
from afm_dist.compression.targets import linears_of
from afm_dist.compression.variant import Request, Variant
from afm_dist.methods.low_rank.ranks import low_rank
from afm_dist.methods.quantization.config import Quantization
from afm_dist.statistics.moments import Moments
from afm_dist.tables.table import Table

# Whose factors are in front: those with the least change of the logit.
BEFORE = "weighted"
# Dimensions of the codes that are quantised, beside all of them.
DIMENSIONS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class IntegerVariant(Variant):
    """Whole numbers of some bits in place of the rows of the table; the linear layers stay as they are.

    Attributes:
        store: How the rows are stored.
    """

    store: str

    def template(self, model: nn.Module, request: Request) -> Plan:
        """Plan the table."""
        del model, request
        return Plan(entries=(PlanEntry(TABLE, Quantization(store=self.store, metric="plain")),))

    def plan(self, model: nn.Module, moments: Mapping[str, Moments], request: Request) -> Plan:
        """Plan the same, whatever the sizes."""
        del moments
        return self.template(model, request)


@dataclass(frozen=True, kw_only=True)
class QuantizedVariant(Variant):
    """Linear layers of low rank, and a table whose codes are quantised, in a way of its own for each field.

    Attributes:
        store: How the rows are stored where no budget chooses.
    """

    store: str = "vq8"

    def check(self, model: nn.Module, request: Request) -> None:
        """Refuse ranks of the linear layers that they cannot have."""
        variants()[BEFORE].check(model, request)

    def template(self, model: nn.Module, request: Request) -> Plan:
        """Plan the linear layers of rank 1, and codes for the rows that there are then."""
        linears = linears_of(variants()[BEFORE].template(model, request))
        return linears + Plan(entries=(PlanEntry(TABLE, Quantization(store=self.store)),))

    def preparations(self, model: nn.Module, request: Request) -> Sequence[Plan]:
        """List tables of low rank whose codes may be quantised, and the table as it is.

        One that takes in the first-order weights is projected in any case.
        """
        table = model.get_submodule(TABLE)
        assert isinstance(table, Table)
        whole = table.dim + request.absorb
        dims = [*(dim for dim in DIMENSIONS if dim < whole), *([whole] if request.absorb else [])]
        low = [self._before(model, request, dim) for dim in dims]
        return low if request.absorb else [*low, Plan()]

    def plan(self, model: nn.Module, moments: Mapping[str, Moments], request: Request) -> Plan:
        """Plan the ranks that are asked for, and one way to store all fields."""
        before = variants()[BEFORE].plan(model, moments, request)
        return before + Plan(entries=(PlanEntry(TABLE, Quantization(store=self.store)),))

    def _before(self, model: nn.Module, request: Request, dim: int) -> Plan:
        *_, table = variants()[BEFORE].template(model, request).entries
        return Plan(entries=(PlanEntry(TABLE, low_rank(table).with_rank(dim)),))


VARIANTS = (
    IntegerVariant(
        name="int8",
        store="int8",
        needs_counts=False,
        reference=True,
        swept=False,
        budgeted=False,
        from_scratch=False,
        words="int8: the rows of the tables as whole numbers of 8 bits, with a scale for each coordinate of "
        "a field; nothing else is compressed.",
    ),
    IntegerVariant(
        name="int4",
        store="int4",
        needs_counts=False,
        reference=True,
        swept=False,
        budgeted=False,
        from_scratch=False,
        words="int4: the same with 4 bits.",
    ),
    QuantizedVariant(
        name="quantized",
        needs_sensitivity=True,
        swept=False,
        from_scratch=False,
        words="quantized: low rank as in weighted, and the codes of the tables in codebooks or on grids of "
        "few bits, fitted to what the logit depends on; with a budget, in the way for each field, and of the "
        "dimension for all, with the least predicted change of the logit.",
    ),
)
