"""What an exported file computes, as a module and as a graph.

Shape legend: B batch, F categorical fields, C numeric fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from afm_dist.dataset.manifest import Field
from afm_dist.serving.scorer import TYPICAL_BATCH
from afm_dist.tables.fused import outside_fields

IDS, NUMERIC, LOGIT = "ids", "numeric", "logit"


class ExportedModel(nn.Module):
    """A model that gives NaN for a row with an id outside its field, and the other rows' logits.

    Files are run where nobody catches an exception for one row of a batch: compiled code may end the
    process, ONNX Runtime refuses the whole batch, and on some devices neither looks at all.

    Args:
        model: Called with ids (B, F) and numbers (B, C); gives logits (B,).
        fields: Its categorical and numeric fields.
    """

    limits: Tensor

    def __init__(self, model: nn.Module, fields: Sequence[Field]) -> None:
        super().__init__()
        self.model = model
        limits = [field.cardinality for field in fields if field.kind == "categorical"]
        self.register_buffer("limits", torch.tensor(limits, dtype=torch.int64))

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Ids (B, F) and numbers (B, C) -> logits (B,); without numeric fields there are ids only."""
        if numeric is None:
            numeric = torch.zeros(ids.shape[0], 0, device=ids.device)
        outside = outside_fields(ids, self.limits)
        logits: Tensor = self.model(ids.masked_fill(outside, 0), numeric)
        return logits.masked_fill(outside.any(1), torch.nan)


def input_names(fields: Sequence[Field]) -> tuple[str, ...]:
    """Return what a file must be given: ids, and numbers if the model has numeric fields."""
    return (IDS, NUMERIC) if any(field.kind == "numeric" for field in fields) else (IDS,)


def trace(model: nn.Module, fields: Sequence[Field]) -> ExportedProgram:
    """Trace the graph of an ``ExportedModel``, for batches of any number of rows, none included.

    Args:
        model: Called with ids (B, F) and numbers (B, C); gives logits (B,). In eval mode.
        fields: Its categorical and numeric fields.
    """
    exported = ExportedModel(model, fields).eval()
    names = input_names(fields)
    n_numeric = sum(field.kind == "numeric" for field in fields)
    examples = {
        IDS: torch.zeros(TYPICAL_BATCH, len(fields) - n_numeric, dtype=torch.int64),
        NUMERIC: torch.zeros(TYPICAL_BATCH, n_numeric),
    }
    batch = {0: Dim("batch", min=0)}
    with torch.no_grad(), _VectorsAsMatrices():
        program = torch.export.export(
            exported,
            tuple(examples[name] for name in names),
            dynamic_shapes=tuple(batch for _ in names),
            strict=False,
        )
    for node in program.graph.nodes:
        # Where the source files lay on the machine that exported.
        node.meta.pop("stack_trace", None)
    return program


class _VectorsAsMatrices(TorchFunctionMode):
    """Within it a matrix is multiplied by a vector as by a matrix of one column.

    ONNX Runtime multiplies a matrix without columns (no numeric fields) by an empty vector to whatever
    lay in memory, and refuses one without rows. By a matrix it does both right.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (Tensor.__matmul__, Tensor.matmul, torch.matmul) and args[1].ndim == 1:
            return functional.linear(args[0], args[1].unsqueeze(0)).squeeze(-1)
        return func(*args, **(kwargs or {}))
