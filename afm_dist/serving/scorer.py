"""What a serving form computes: one lookup, the first-order term, the interactions. Nothing else is traced.

Shape legend: B batch, F categorical fields, C numeric fields, K_i code dimension of field i.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from afm_dist.models.base import CTRModel
from afm_dist.serving.interactions import interactions_of, projected
from afm_dist.serving.rows import Precision
from afm_dist.serving.table import PackedTable
from afm_dist.tables.first_order import CodedLinearTerm, LinearTerm
from afm_dist.tables.folding import folded_linear
from afm_dist.tables.parts import EmptyStore, Store
from afm_dist.tables.table import Table, row_weights

# What a compiler assumes of a batch when it decides how to share work among threads.
TYPICAL_BATCH = 1024


class Scorer(nn.Module):
    """A model's logits from its packed table; what is compiled and exported.

    Args:
        model: Is not changed.
        precision: Of the table in memory.

    Raises:
        OptionError: numbers that the precision cannot hold.
    """

    def __init__(self, model: CTRModel, precision: Precision) -> None:
        super().__init__()
        self.n_fields = model.n_fields
        self.n_numeric = model.n_numeric
        self.table = PackedTable(model.embedding, model.linear, precision)
        rest = _without_tables(model)
        self.first_order = _FirstOrder(rest.linear)
        self.interactions = interactions_of(rest)

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        """Ids (B, F) and numbers (B, C) -> logits (B,)."""
        codes, weight = self.table(ids)
        logits: Tensor = self.first_order(codes, weight, numeric) + self.interactions(codes, numeric)
        return logits

    def example(self, rows: int) -> tuple[Tensor, Tensor]:
        """Ids and numbers of rows to trace it with, on its device: all of them 0."""
        device = self.table.limits.device
        ids = torch.zeros(rows, self.n_fields, dtype=torch.int64, device=device)
        return ids, torch.zeros(rows, self.n_numeric, device=device)


class _FirstOrder(nn.Module):
    """The first-order term from what the packed table gave."""

    def __init__(self, term: LinearTerm | CodedLinearTerm) -> None:
        super().__init__()
        self.numeric = term.numeric
        self.coded = term if isinstance(term, CodedLinearTerm) else None

    def forward(self, codes: Tensor, weight: Tensor | None, numeric: Tensor) -> Tensor:
        """Codes (B, ΣK_i), the sums of the ids' weights (B,) or None, and numbers (B, C) -> (B,)."""
        if weight is None:
            assert self.coded is not None
            logits: Tensor = self.coded(codes, numeric, codes)
            return logits
        return weight + numeric @ self.numeric


def _without_tables(model: CTRModel) -> CTRModel:
    """Copy the model in float32 without rows of tables, folded where the model declares that this is right.

    A reader that is a linear layer no more, being compressed itself, goes on reading the embeddings.
    """
    memo: dict[int, Any] = {}
    for weight in row_weights(model):
        memo[id(weight)] = nn.Parameter(weight.new_empty(0, weight.shape[1]))
    for owner in model.modules():
        if isinstance(owner, Store):
            memo[id(owner)] = EmptyStore(owner.width)
    rest = copy.deepcopy(model, memo).eval().float()
    for name, reader_name in rest.folds.items():
        table, reader = cast(Table, rest.get_submodule(name)), rest.get_submodule(reader_name)
        if projected(table) and not table.folded and isinstance(reader, nn.Linear):
            rest.set_submodule(reader_name, folded_linear(reader, table))
            table.folded = True
    return rest
