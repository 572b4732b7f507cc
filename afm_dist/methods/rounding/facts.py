"""What reports say of rounded rows."""

from __future__ import annotations

from collections.abc import Sequence

from afm_dist.compression.facts import MethodFacts
from afm_dist.compression.plan import PlanEntry
from afm_dist.methods.rounding.config import Rounding
from afm_dist.statistics.statistics import Statistics


class RoundingFacts(MethodFacts[Rounding]):
    """Which rows are rounded, and when."""

    def layer(self, key: str, config: Rounding, known: Statistics) -> None:
        """Have no line among the layers: a note says it for all."""

    def notes(self, entries: Sequence[PlanEntry]) -> list[str]:
        """Say it once for all modules."""
        return [
            f"The rows of {' and '.join(entry.name for entry in entries)} are rounded to bfloat16, before "
            "fine-tuning and again after it: the checkpoint has two bytes for each of their numbers. In "
            "memory they are float32, and all figures of the compressed models are of the rounded rows; only "
            "the validation scores during fine-tuning are not."
        ]
