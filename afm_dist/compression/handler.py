"""What a type of module must say about itself to be watched and compressed: one handler a type.

Statistics, planning and rewriting ask a module's handler and know no module types themselves, so
a new type is one subclass of ``Handler`` and one ``register_handler``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import PlanEntry
from afm_dist.errors import OptionError

M = TypeVar("M", bound=nn.Module)

ALREADY_COMPRESSED = "is already compressed; start from the uncompressed model"


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


class Handler(ABC, Generic[M]):
    """How modules of one type are watched and rewritten.

    ``name`` is always the module's name in its model.

    Attributes:
        makes: Types of modules that ``build`` gives, other than the handled one: they are not
            compressed again, nor are their parts.
    """

    makes: ClassVar[tuple[type[nn.Module], ...]] = ()

    def refusal(self, module: M) -> str | None:
        """Why this very module cannot be compressed, to be read behind its name; None if it can."""
        del module
        return None

    @abstractmethod
    def widths(self, name: str, module: M) -> Mapping[str, int]:
        """The moments of a module: their names and widths."""

    @abstractmethod
    def observe(self, name: str, module: M, output: Any, *args: Any, **kwargs: Any) -> Iterator[Observation]:
        """What a call adds to the moments.

        Args:
            name: Of the module.
            module: That was called.
            output: What it returned.
            args: What it was called with.
            kwargs: What it was called with.
        """

    @abstractmethod
    def build(self, module: M, entry: PlanEntry) -> nn.Module:
        """The empty replacement: all that a reader of a checkpoint needs.

        Raises:
            OptionError: the entry does not fit the module.
        """

    @abstractmethod
    def fill(self, new: Any, module: M, entry: PlanEntry, known: OutputStatistics) -> None:
        """Write the values into what ``build`` gave.

        Args:
            new: What ``build`` gave.
            module: That is replaced.
            entry: Of the plan.
            known: Moments by name, and the sensitivity where it was measured.

        Raises:
            OptionError: statistics that are missing or of another width.
        """

    def fold(self, model: nn.Module, new: Any, entry: PlanEntry, *, values: bool) -> None:
        """Let the linear layer ``entry.folded_into`` read the codes (paper eq. 12).

        Args:
            model: Its layer is replaced by a narrower one.
            new: What ``build`` gave.
            entry: Of the table.
            values: Whether there are values to fold, or only the structure.

        Raises:
            OptionError: this is no table whose codes another layer can read.
        """
        del model, new, values
        raise OptionError(
            f"{entry.name} cannot be folded into {entry.folded_into}: only the fused tables of this "
            "library's models are folded; leave folded_into out"
        )

    def absorb(
        self, model: nn.Module, new: Any, module: M, entry: PlanEntry, known: OutputStatistics | None
    ) -> nn.Module:
        """Write the values with those of the first-order term ``entry.absorbs``, instead of ``fill``.

        Args:
            model: Is not changed.
            new: What ``build`` gave.
            module: That is replaced.
            entry: Of the table.
            known: Moments of both together, and the sensitivity; None: only the structure is wanted.

        Returns:
            What takes the place of the first-order term.

        Raises:
            OptionError: this is no table that takes in first-order weights, or as in ``fill``.
        """
        del model, new, module, known
        raise OptionError(
            f"{entry.name} cannot absorb {entry.absorbs}: only the fused tables of this library's models "
            "take in first-order weights; leave absorbs out"
        )


def check_width(entry: PlanEntry, width: int) -> None:
    """Refuse a rank larger than a module, and ranks by field of a module that has none.

    Raises:
        OptionError: names module, rank and width.
    """
    if entry.ranks is not None:
        raise OptionError(
            f"{entry.name} has no fields that could have ranks of their own; only the fused tables of this "
            "library's models have; leave ranks out"
        )
    if entry.rank > width:
        raise OptionError(
            f"rank {entry.rank} for {entry.name}: larger than the layer's {width}; lower the rank"
        )
