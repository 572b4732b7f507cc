"""What a row costs a model, counted on the meta device: nothing is allocated, nothing computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# What one core of the small machine of BENCHMARKS.md does. Together they give the time of the eight
# architectures in both published shapes to about 30 %, forward and with training.
FLOPS_PER_CORE = 120e9
BYTES_PER_CORE = 2.5e9

# Two sizes tell what grows with the rows from what does not (the gradients of the weights).
_ROWS = (1024, 2048)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a batch costs.

    Attributes:
        flops: Floating-point operations of matrix products, per row.
        traffic: Bytes that operations write, per row; what bounds models of many small products.
        alive: Bytes of intermediate results that exist at once, per row.
        fixed: The same, whatever the rows: the gradients of the dense weights.
    """

    flops: int
    traffic: int
    alive: int
    fixed: int = 0

    def memory(self, rows: int) -> int:
        """Estimate the bytes of intermediate results of a batch, at most."""
        return self.alive * rows + self.fixed

    @property
    def seconds(self) -> float:
        """Of one row on one core."""
        return self.flops / FLOPS_PER_CORE + self.traffic / BYTES_PER_CORE


def inference_footprint(model: nn.Module, fields: int, numbers: int) -> Footprint:
    """Measure the memory of a forward pass.

    Args:
        model: On the meta device; called with ids and numbers.
        fields: Categorical fields.
        numbers: Numeric fields.
    """

    def forward(ids: Tensor, numeric: Tensor) -> None:
        with torch.inference_mode():
            model(ids, numeric)

    model.eval()
    return _count(forward, fields, numbers)


def training_footprint(model: nn.Module, fields: int, numbers: int) -> Footprint:
    """Measure the memory of a forward and a backward pass; arguments as ``inference_footprint``."""

    def step(ids: Tensor, numeric: Tensor) -> None:
        logits = model(ids, numeric)
        functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)).backward()
        model.zero_grad()

    model.train()
    return _count(step, fields, numbers)


def _count(run: Callable[[Tensor, Tensor], None], fields: int, numbers: int) -> Footprint:
    counted = []
    for rows in _ROWS:
        ids = torch.zeros(rows, fields, dtype=torch.int64, device="meta")
        numeric = torch.zeros(rows, numbers, device="meta")
        with FlopCounterMode(display=False) as flops, _Results() as results:
            run(ids, numeric)
        counted.append((flops.get_total_flops(), results.written, results.peak))
    few, many = _ROWS
    per_row = [(more - less) / (many - few) for less, more in zip(*counted, strict=True)]
    return Footprint(
        flops=round(per_row[0]),
        traffic=round(per_row[1]),
        alive=round(per_row[2]),
        fixed=max(0, round(counted[0][2] - few * per_row[2])),
    )


class _Results(TorchDispatchMode):
    """Bytes of all tensors that operations make: written altogether, and most alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written = self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # Of a sparse gradient the values are counted, which are tensors of their own.
            if isinstance(tensor, Tensor) and not tensor.is_sparse:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.written += size
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size
