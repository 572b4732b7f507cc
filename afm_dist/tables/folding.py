"""Letting the linear layer behind a table read its codes instead of the embeddings (paper eq. 12)."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from afm_dist.tables.table import Table


def folded_linear(wide: nn.Linear, table: Table, *, values: bool = True) -> nn.Linear:
    """Make a linear layer over embeddings and numbers as one over codes and numbers (paper eq. 12).

    Args:
        wide: Reads [e, numeric], F·T + C inputs.
        table: With projections.
        values: Whether there are values to fold, or only the structure.

    Returns:
        Reads [codes, numeric], F·K + C inputs; always with a bias.
    """
    inputs = math.prod(table.code_shape) + wide.in_features - len(table.names) * table.dim
    with warnings.catch_warnings():
        # Without numbers, and with no field but of rank 0, the layer reads nothing.
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        narrow = nn.Linear(inputs, wide.out_features).to(wide.weight)
    if values:
        with torch.no_grad():
            _fold_values_(narrow, wide, table)
    return narrow.requires_grad_(wide.weight.requires_grad)


def _fold_values_(narrow: nn.Linear, wide: nn.Linear, table: Table) -> None:
    T = table.dim
    bias: Tensor = narrow.bias.new_zeros(wide.out_features) if wide.bias is None else wide.bias
    for i in range(len(table.names)):
        decoder = table.decoder(i)
        assert decoder is not None
        columns, bias = fold(wide.weight[:, i * T : (i + 1) * T], bias, *decoder)
        narrow.weight[:, table.code_columns(i)] = columns.to(narrow.weight)
    narrow.weight[:, math.prod(table.code_shape) :] = wide.weight[:, len(table.names) * T :]
    narrow.bias.copy_(bias)


def fold(weight: Tensor, bias: Tensor, projection: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a field's projection into the columns of the linear layer that reads it (paper eq. 12).

    W′(P e′ + s) + b′ = (W′P) e′ + (b′ + W′s). The bias is a sum over the fields.

    Args:
        weight: W′, the columns that read this field, shape (M, T).
        bias: b′ so far, shape (M,).
        projection: P, shape (T, K).
        shift: s, the field's bias, shape (T,).

    Returns:
        Folded columns (M, K) and the new bias (M,), float64.
    """
    W = weight.double()
    return W @ projection.double(), bias.double() + W @ shift.double()
