"""What becomes of the numbers that a model has for each id, besides their dimension."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from afm_dist.compression.plan import TABLE, Plan
from afm_dist.compression.targets import first_order
from afm_dist.methods.rounding.config import rounding

if TYPE_CHECKING:
    from torch import nn

LinearTerms = Literal["keep", "absorb", "bfloat16"]
Codes = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """The rows of the table and of the first-order term.

    Attributes:
        linear_terms: First-order weights stay as they are, are absorbed into the table, or rounded.
        codes: What the rows of the table are stored in, compressed or not.
    """

    linear_terms: LinearTerms = "keep"
    codes: Codes = "float32"

    @property
    def absorb(self) -> bool:
        """Whether the table takes in the first-order weights."""
        return self.linear_terms == "absorb"

    def absorbs(self, model: nn.Module) -> str | None:
        """Name the first-order term that the table takes in; None: it takes in none.

        Raises:
            OptionError: the model declares none.
        """
        return first_order(model, self.linear_terms) if self.absorb else None

    def rounded(self, model: nn.Module) -> Plan:
        """Give the plan of what is rounded, whatever becomes of the table.

        Raises:
            OptionError: the model declares no first-order term.
        """
        rounded = [TABLE] if self.codes == "bfloat16" else []
        if self.linear_terms == "bfloat16":
            rounded.append(first_order(model, self.linear_terms))
        return rounding(*rounded)

    def changes(self) -> dict[str, Any]:
        """Give what a stage's fingerprint says of it: nothing where all is as published."""
        rounded = [option for option, chosen in asdict(self).items() if chosen == "bfloat16"]
        return absorbing(self.absorb) | ({"bfloat16": rounded} if rounded else {})


PUBLISHED = RowOptions()


def absorbing(absorb: bool) -> dict[str, bool]:
    """Give what the fingerprint of a stage says that only needs to know whether weights are absorbed."""
    return {"absorb": True} if absorb else {}
