"""What reports say of quantised rows."""

from __future__ import annotations

from collections.abc import Sequence

from afm_dist.compression.facts import MethodFacts
from afm_dist.compression.look import Look
from afm_dist.compression.plan import PlanEntry
from afm_dist.methods.quantization.config import Quantization


class QuantizationFacts(MethodFacts[Quantization]):
    """How the rows are stored, for whoever reads the sizes."""

    looks = {  # noqa: RUF012
        "quantized": Look(label="Quantised tables", colour="green", marker="*"),
        "int8": Look(label="8-bit rows", colour="teal", marker="v"),
        "int4": Look(label="4-bit rows", colour="rust", marker="v"),
    }

    def notes(self, entries: Sequence[PlanEntry]) -> list[str]:
        """Say it once for each table."""
        return [
            f"The rows of {entry.name} are quantised {entry.config.in_words}: files and the form for "
            "inference hold packed codes, and what these stand for in float16. All bytes are counted, those "
            "of codebooks and scales, too. Fine-tuning trains what the codes stand for, not the codes."
            for entry in entries
        ]
