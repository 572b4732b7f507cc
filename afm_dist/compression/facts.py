"""What a method tells reports about itself. Reports ask it and know no method by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from afm_dist.compression.config import MethodConfig
from afm_dist.compression.look import Look
from afm_dist.compression.plan import PlanEntry
from afm_dist.statistics.statistics import Statistics

C = TypeVar("C", bound=MethodConfig)


class MethodFacts(Generic[C]):
    """Facts of one method, for its config; what a method has nothing to say of stays as it is here.

    Attributes:
        looks: By the name in a report: a row is called that, or that and a hyphen and more, and a layer's
            method by the config's label. In the order in which reports list them. What is not here has its
            name for a label.
    """

    looks: ClassVar[Mapping[str, Look]] = {}

    def layer(self, key: str, config: C, known: Statistics) -> dict[str, Any] | None:
        """Describe what became of some outputs, as ``report.json`` has it under ``layers``.

        A method with ranks gives what the drawings of ranks and spectra need; of another one the config's
        ``details`` are shown.

        Args:
            key: Of the outputs.
            config: How they were compressed.
            known: Of the outputs, before.

        Returns:
            None where the method has no line there.
        """
        del key, config, known
        return {}

    def columns(self, layer: Mapping[str, Any]) -> Mapping[str, str | int | float]:
        """Show what a report knows of one of the layers: the value of each column, by the column's title.

        Args:
            layer: As ``layer`` described it, when it is read from ``report.json``.

        Returns:
            Text, whole numbers, and shares as floats, 0 to 1.
        """
        found: Mapping[str, str] = layer.get("details", {})
        return found

    def kept_share(self, key: str, config: C, known: Statistics) -> float | None:
        """Give the share of the variance that is kept, 0 to 1; None where the method keeps no such thing."""
        del key, config, known
        return None

    def counted_with(self, config: C) -> Sequence[str]:
        """Name the neighbours whose bytes count as the table's, before and after."""
        del config
        return ()

    def notes(self, entries: Sequence[PlanEntry]) -> list[str]:
        """Say in sentences what a reader of a report must know of these entries of the method."""
        del entries
        return []
