"""Files of ``torch.export``: the graph and its tensors, for any torch to load, run or compile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from afm_dist.export.formats import Run

METADATA = "metadata.json"


def prepare() -> None:
    """Nothing is needed but torch."""


def write(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Write the archive; the texts are its extra file ``metadata.json``."""
    texts = json.dumps(dict(metadata), ensure_ascii=False, indent=1)
    # The rows it was traced with: as large as a small table, and of no use.
    program.example_inputs = None
    torch.export.save(program, path, extra_files={METADATA: texts})


def load(path: Path) -> Run:
    """As its users do."""
    module = torch.export.load(path).module()

    def run(*inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = module(*inputs)
        return logits

    return run
