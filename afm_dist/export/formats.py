"""What a format must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.export import ExportedProgram

# The inputs of ``input_names`` in their order -> logits (B,).
Run = Callable[..., Tensor]


class Format(Protocol):
    """One file format; a module with these functions is one."""

    def prepare(self) -> None:
        """Look for what the format needs, before the work begins.

        Raises:
            OptionError: it is missing.
        """
        ...

    def write(self, program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
        """Write the file, and what else belongs to it in the same folder."""
        ...

    def load(self, path: Path) -> Run:
        """Load the file as its users run it."""
        ...
