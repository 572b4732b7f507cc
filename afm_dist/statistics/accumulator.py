"""Moments of a stream of batches: products in the rows' precision, summed in float64.

Shape legend: B rows of a batch, M outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from afm_dist.statistics.moments import Moments

# Rows of a block, so that the rounding of its float32 product stays below the bound of 1e-6.
BLOCK_ROWS = 1024
# Relative error of a block's float32 product above which it is done again in float64.
PRODUCT_TOLERANCE = 3e-7
# Share of distinct values at the top of a block's largest column below which it is done in float64, too.
DISTINCT_SHARE = 0.25
DISTINCT_ROWS = 256
# Below, squares of float32 values lose digits to underflow.
SMALLEST_SQUARES = 1e-24
# Values above may overflow float64 once squared and summed.
LARGEST = 1e140
# Columns per panel of the upper triangle: narrow enough to skip most of the lower one, wide enough
# for the product to run at full speed; a multiple of the vector width.
PANEL = 80


class Workspace:
    """Memory that accumulators share, one block and one layer after the other."""

    def __init__(self) -> None:
        self._products: dict[tuple[object, ...], _Product] = {}

    def product(self, rows: Tensor) -> _Product:
        """Memory for the product of some rows; only that for full blocks is kept."""
        key = (*rows.shape, rows.dtype, rows.device)
        product = self._products.get(key) or _Product(rows)
        if len(rows) == BLOCK_ROWS:
            self._products[key] = product
        return product


class _Product:
    """Σx, Σx² and Σxxᵀ of shifted rows x = y − s, in the precision of the rows.

    Attributes:
        total: Σx, shape (M,).
        squares: Σx², shape (M,).
        diagonal: Of Σxxᵀ, shape (M,).
        panels: Upper triangle of Σxxᵀ in panels of rows, each from its own first column on.
    """

    def __init__(self, like: Tensor) -> None:
        rows, width = like.shape
        self._shifted = like.new_empty(rows, width)
        self.total = self.squares = like.new_empty(width)
        product = like.new_empty(width, width)
        self.diagonal = product.diagonal()
        self.panels = _panels(product)
        self._factors = [
            (self._shifted[:, start : start + PANEL].T, self._shifted[:, start:])
            for start in range(0, width, PANEL)
        ]

    def of(self, rows: Tensor, shift: Tensor) -> _Product:
        """Overwrite with the sums of some rows."""
        torch.sub(rows, shift, out=self._shifted)
        self.total = self._shifted.sum(0)
        for (left, right), panel in zip(self._factors, self.panels, strict=True):
            torch.mm(left, right, out=panel)
        self.squares = self.diagonal
        if rows.dtype == torch.float32:
            self.squares = self._shifted.square_().sum(0)
        return self

    @property
    def accurate(self) -> bool:
        """Whether float32 was good enough. False, too, where squares overflow or are lost to underflow.

        Products add up in the order of the rows. Where the same few values come again and again, their
        roundings add up instead of cancelling. That shows in the diagonal, which ``squares`` knows better
        (they add up pairwise), unless the few columns with the largest variances round well by chance:
        hence the second look at the largest.
        """
        squares = _wide(self.squares)
        size = torch.linalg.vector_norm(squares)
        error = torch.linalg.vector_norm(_wide(self.diagonal) - squares)
        if not (error <= PRODUCT_TOLERANCE * size) & (size > SMALLEST_SQUARES):
            return False
        largest = self._shifted[:DISTINCT_ROWS, squares.argmax()]
        return len(largest.unique()) >= DISTINCT_SHARE * len(largest)


class MomentAccumulator:
    """Moments of a stream of batches, one batch in memory at a time.

    Rows are cut into blocks, whatever the batches they come in, so the bits follow from the rows and
    their order. A block is shifted by a mean near its own, so that its product may run in the rows'
    own precision (float32); one that is not good enough for the error bound of 1e-6 is done again in
    float64. Products are summed in float64, on the device of the rows where that has float64.

    Args:
        width: M, the number of dimensions.
        workspace: Shared with accumulators that are not updated at the same time.

    Notes:
        A batch costs O(B·M²) operations; memory is O(M²) and a block of rows, besides the batch.
    """

    def __init__(self, width: int, workspace: Workspace | None = None) -> None:
        self._workspace = workspace or Workspace()
        self._settled = Moments.empty(width)
        self._sums: _ShiftedSums | None = None
        # Rows that do not fill a block yet, and how many they are.
        self._waiting: list[Tensor] = []
        self._held = 0

    @property
    def moments(self) -> Moments:
        """What was accumulated so far."""
        with _plain_tensors():
            moments = self._settled
            if self._sums is not None:
                moments = moments.merge(self._sums.moments)
            if self._waiting:
                rest = _ShiftedSums(torch.cat(self._waiting), self._workspace)
                moments = moments.merge(rest.moments)
            return moments

    def update(self, rows: Tensor) -> None:
        """Add a batch of rows, shape (B, M), float32 or float64.

        Raises:
            ValueError: a row holds NaN, infinity or values whose squares overflow, or has another width;
                nothing was added.
        """
        if rows.ndim != 2 or rows.shape[1] != self._settled.width:
            raise ValueError(f"expected rows of shape (B, {self._settled.width}), got {tuple(rows.shape)}")
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        with _plain_tensors():
            _check_values(rows)
            head = min(BLOCK_ROWS - self._held, len(rows)) if self._held else 0
            tail = (len(rows) - head) % BLOCK_ROWS
            self._wait(rows[:head])
            for start in range(head, len(rows) - tail, BLOCK_ROWS):
                self._add(rows[start : start + BLOCK_ROWS])
            self._wait(rows[len(rows) - tail :])

    def _wait(self, rows: Tensor) -> None:
        if len(rows):
            # A copy: what comes after the layer may overwrite its output.
            self._waiting.append(rows.clone())
            self._held += len(rows)
        if self._held == BLOCK_ROWS:
            self._add_waiting()

    def _add_waiting(self) -> None:
        block = torch.cat(self._waiting)
        self._waiting, self._held = [], 0
        self._add(block)

    def _add(self, block: Tensor) -> None:
        if self._sums is not None and not self._sums.add(block):
            self._settled = self._settled.merge(self._sums.moments)
            self._sums = None
        if self._sums is None:
            self._sums = _ShiftedSums(block, self._workspace)


class _ShiftedSums:
    """Count, Σ(y − s) and Σ(y − s)(y − s)ᵀ in float64; the shift s is the mean of the first block."""

    def __init__(self, block: Tensor, workspace: Workspace) -> None:
        self._workspace = workspace
        self._shift = _wide(block).mean(0).to(block)
        self._count = 0
        self._total = torch.zeros_like(_wide(self._shift))
        self._gram = self._total.new_zeros(block.shape[1], block.shape[1])
        self._diagonal, self._panels = self._gram.diagonal(), _panels(self._gram)
        self.add(block)

    @property
    def moments(self) -> Moments:
        residual = self._total / self._count
        scatter = torch.triu(self._gram - torch.outer(self._total, residual))
        scatter += scatter.triu(1).T
        return Moments(count=self._count, mean=(_wide(self._shift) + residual).cpu(), scatter=scatter.cpu())

    def add(self, block: Tensor) -> bool:
        """Add a block of rows; False, and nothing was added, when the shift does not suit it."""
        product = self._workspace.product(block).of(block, self._shift)
        if block.dtype == torch.float32 and not product.accurate:
            product = _Product(_wide(block)).of(_wide(block), _wide(self._shift))
        count = self._count + len(block)
        total = self._total + _wide(product.total)
        offset = total.square() / count
        scatter = self._diagonal + _wide(product.squares) - offset
        # Σxxᵀ = scatter + n E[x]E[x]ᵀ: with a shift so far from the mean that the second term is the
        # larger one, rounding would be that of the distance.
        if self._count and offset.sum() > torch.linalg.vector_norm(scatter):
            return False
        self._count, self._total = count, total
        for own, panel in zip(self._panels, product.panels, strict=True):
            own += panel.to(own.device)
        return True


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """No gradients, and no inference tensors: those cannot be changed outside inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _check_values(rows: Tensor) -> None:
    if rows.dtype == torch.float64 and rows.numel():
        largest = float(torch.stack(torch.aminmax(rows)).abs().max())
        finite = math.isfinite(largest)
        if finite and largest > LARGEST:
            raise ValueError("values so large that their squares overflow float64")
    else:
        # A finite sum has finite terms; another one may have, too.
        finite = math.isfinite(rows.sum()) or bool(rows.isfinite().all())
    if not finite:
        raise ValueError("NaN or infinity")


def _panels(matrix: Tensor) -> list[Tensor]:
    return [matrix[start : start + PANEL, start:] for start in range(0, len(matrix), PANEL)]


def _wide(tensor: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
