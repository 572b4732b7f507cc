"""How the numbers of an id are kept: its code, and its first-order weight beside it.

Shape legend: B batch, F fields, K code dimension, V rows of all fields.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.errors import OptionError
from afm_dist.tables.fused import first_rows
from afm_dist.tables.parts import Stored

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class PackedRows(nn.Module, ABC):
    """The rows of fields with codes of one width, each with the code and the first-order weight of an id.

    Attributes:
        code_dim: K.
        weighted: Whether the rows hold first-order weights; without, the codes give them.
    """

    def __init__(self, code_dim: int, *, weighted: bool) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.weighted = weighted

    @abstractmethod
    def write(self, field: int, rows: slice, codes: Tensor, weights: Tensor | None) -> None:
        """Fill in a field.

        Args:
            field: Its place among the fields.
            rows: Where its rows lie.
            codes: Shape (V of the field, K); of rows that hold codes already of no width.
            weights: Shape (V of the field, 1); None without first-order weights.

        Raises:
            OptionError: numbers that the format cannot hold.
        """

    @abstractmethod
    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes (B, F, K) and first-order weights (B, F), float32, of rows (B, F).

        Raises:
            IndexError: a row outside the table.
        """


class FloatRows(PackedRows):
    """Rows of floating-point numbers.

    In bfloat16 a number is off by at most 2⁻⁸ of itself.

    Attributes:
        table: Shape (V, K + 1); (V, K) without first-order weights.
    """

    table: Tensor

    def __init__(
        self, n_rows: int, code_dim: int, *, weighted: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(code_dim, weighted=weighted)
        table = torch.empty(n_rows, code_dim + weighted, dtype=dtype, device=device)
        self.register_buffer("table", table)

    def write(self, field: int, rows: slice, codes: Tensor, weights: Tensor | None) -> None:
        """Write the numbers, rounded to the table's type."""
        del field
        self.table[rows, : self.code_dim].copy_(codes)
        if weights is not None:
            self.table[rows, self.code_dim :].copy_(weights)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """One lookup for both."""
        numbers = functional.embedding(rows, self.table).float()
        codes = numbers[..., : self.code_dim]
        return codes, numbers[..., self.code_dim] if self.weighted else None


class EmptyRows(PackedRows):
    """Rows of no numbers: of fields of rank 0 whose first-order weights are constants, too.

    Args:
        n_rows: V; what lies behind is outside.
    """

    nothing: Tensor

    def __init__(self, n_rows: int, *, device: torch.device) -> None:
        super().__init__(0, weighted=False)
        self.n_rows = n_rows
        self.register_buffer("nothing", torch.zeros(1, 1, device=device))

    def write(self, field: int, rows: slice, codes: Tensor, weights: Tensor | None) -> None:
        """Nothing."""

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Look up, failing where a lookup in a table of V rows would."""
        return functional.embedding(rows // self.n_rows, self.nothing)[..., :0], None


class Int8Rows(PackedRows):
    """Rows of bytes: K codes with a step of the row's own, and a first-order weight of two bytes.

    A code is stored as the nearest multiple of its row's step. The step is max|c|/127 over the row, rounded
    up to one of 255 multiples of the field's ``step``, so that it takes a byte. A code is off by at most half
    of (the largest of its row + 1/255 of the largest of its field)/127. The first-order weight has sixteen
    bits of its own and is off by at most max|w|/65534 over the field.

    Attributes:
        table: Shape (V, K + 3): codes, step − 128, and the weight's high byte and low byte − 128;
            (V, K + 1) without first-order weights, (V, 2) without codes.
        step: What the steps of a field's rows are multiples of, shape (F, 1).
        weight_step: What the first-order weights of a field are multiples of, shape (F,).
    """

    table: Tensor
    step: Tensor
    weight_step: Tensor

    def __init__(
        self, n_rows: int, n_fields: int, code_dim: int, *, weighted: bool, device: torch.device
    ) -> None:
        super().__init__(code_dim, weighted=weighted)
        width = code_dim + (1 if code_dim else 0) + (2 if weighted else 0)
        self.register_buffer("table", torch.empty(n_rows, width, dtype=torch.int8, device=device))
        self.register_buffer("step", torch.zeros(n_fields, 1, device=device))
        self.register_buffer("weight_step", torch.zeros(n_fields, device=device))

    def write(self, field: int, rows: slice, codes: Tensor, weights: Tensor | None) -> None:
        """Write the nearest multiples, some rows at a time."""
        self.step[field] = _finite(_largest(codes) / 127 / 255)
        if weights is not None:
            self.weight_step[field] = _finite(_largest(weights) / 32767)
        start = rows.start
        for block in range(0, len(codes), _BLOCK):
            part = slice(block, min(block + _BLOCK, len(codes)))
            table = self.table[start + part.start : start + part.stop]
            if self.code_dim:
                self._write_codes(table, field, codes[part].float())
            if weights is not None:
                self._write_weights(table, field, weights[part].float())

    def _write_codes(self, table: Tensor, field: int, codes: Tensor) -> None:
        K = self.code_dim
        step = self.step[field].clamp(min=_TINY)
        levels = (codes.abs().amax(1, keepdim=True) / 127 / step).ceil().clamp(max=255)
        table[:, :K] = (codes / (levels * step).clamp(min=_TINY)).round().clamp(-127, 127).to(torch.int8)
        table[:, K : K + 1] = (levels - 128).to(torch.int8)

    def _write_weights(self, table: Tensor, field: int, weights: Tensor) -> None:
        whole = (weights / self.weight_step[field].clamp(min=_TINY)).round().clamp(-32767, 32767)
        high = (whole / 256).floor()
        table[:, -2:-1] = high.to(torch.int8)
        table[:, -1:] = (whole - 256 * high - 128).to(torch.int8)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """One lookup for both."""
        numbers = functional.embedding(rows, self.table).float()
        K = self.code_dim
        codes = numbers[..., :K]
        if K:
            codes = codes * ((numbers[..., K : K + 1] + 128) * self.step)
        if not self.weighted:
            return codes, None
        return codes, (256 * numbers[..., -2] + numbers[..., -1] + 128) * self.weight_step


class StoredRows(PackedRows):
    """Codes as a table's store holds them, packed, and first-order weights beside them in rows of their own.

    Args:
        stored: Address and store; are copied.
        sizes: Ids of each field.
        weights: Rows of codes of no width; None without first-order weights.
    """

    first: Tensor
    shift: Tensor

    def __init__(self, stored: Stored, sizes: Sequence[int], weights: PackedRows | None) -> None:
        super().__init__(stored.store.width, weighted=weights is not None)
        self.address, self.store = copy.deepcopy(stored.address), stored.store.packed()
        self.weights = weights
        slots = sizes if self.address is None else self.address.slots
        self.ids, self.slots = sum(sizes), sum(slots)
        device = next((tensor.device for tensor in self.store.state_dict().values()), None)
        first = first_rows(sizes).to(device)
        self.register_buffer("first", first)
        self.register_buffer("shift", first_rows(slots).to(device))

    def write(self, field: int, rows: slice, codes: Tensor, weights: Tensor | None) -> None:
        """Write the first-order weights; the codes are there."""
        if self.weights is not None:
            self.weights.write(field, rows, codes[:, :0], weights)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Look up the codes, and the weights beside them."""
        slots = rows
        if self.address is not None:
            # Whatever an address makes of an id outside, it is sent outside the store.
            slots = (self.address(rows - self.first) + self.shift).masked_fill(rows >= self.ids, self.slots)
        codes: Tensor = self.store(slots)
        return codes, None if self.weights is None else self.weights(rows)[1]


# Rows that are rounded at a time: their temporaries stay small beside the table.
_BLOCK = 1 << 18
# Keeps 0/0 away from rows of zeros, and is smaller than every number that matters.
_TINY = 1e-37


def _largest(numbers: Tensor) -> float:
    """Find the largest magnitude; 0 of none."""
    if not numbers.numel():
        return 0.0
    smallest, largest = numbers.aminmax()
    return float(torch.maximum(-smallest, largest))


def _finite(step: float) -> float:
    if not math.isfinite(step):
        raise OptionError("precision int8: the table holds numbers that are not finite; mend the model first")
    return step
