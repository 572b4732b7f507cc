"""The first-order term of a CTR model: from a table of its own, or from the codes of the embeddings.

Shape legend: B batch, F categorical fields, C numeric fields, K code dimension, V rows of all fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.errors import OptionError
from afm_dist.tables.fused import first_rows
from afm_dist.tables.parts import Store
from afm_dist.tables.table import Table


class LinearTerm(nn.Module):
    """A weight per id and per numeric field: the first-order part of a CTR model.

    Args:
        cardinalities: Rows of each categorical field.
        n_numeric: C.
        sparse: Whether gradients of the id weights are sparse.
        names: Of the categorical fields, for what is known of them by name.
        store: Holds the weights of the ids, of width 1; None: they are ``weight``.

    Attributes:
        weight: Of the ids of all fields, shape (V, 1); None with a ``store``.
        numeric: Of the numbers, shape (C,).
    """

    offsets: Tensor
    weight: nn.Parameter
    store: Store | None

    def __init__(
        self,
        cardinalities: Sequence[int],
        n_numeric: int,
        *,
        sparse: bool = True,
        names: Sequence[str] = (),
        store: Store | None = None,
    ) -> None:
        super().__init__()
        self.sparse = sparse
        self.names = tuple(names)
        self.store = store
        if store is None:
            self.weight = nn.Parameter(torch.zeros(sum(cardinalities), 1))
        else:
            self.register_parameter("weight", None)
        self.numeric = nn.Parameter(torch.zeros(n_numeric))
        self.cardinalities = tuple(cardinalities)
        self.register_buffer("offsets", first_rows(cardinalities), persistent=False)

    @property
    def row_weight(self) -> nn.Parameter:
        """The parameter with a row for each id."""
        return self.weight

    def reset_table(self) -> None:
        """Begin anew with the weights of the ids; those of the numbers stay, and so does a store."""
        if self.store is None:
            nn.init.zeros_(self.weight)

    def rebuild_offsets(self) -> Tensor:
        """Recompute the offsets; they are not stored in checkpoints."""
        return first_rows(self.cardinalities)

    def rows(self, field: int) -> Tensor:
        """Give the weights of all ids of one field, shape (V, 1)."""
        if self.store is not None:
            return self.store.of_field(field, torch.arange(self.cardinalities[field]).to(self.offsets.device))
        start = sum(self.cardinalities[:field])
        return self.weight[start : start + self.cardinalities[field]]

    def field_numbers(self, field: int) -> dict[str, int]:
        """Count the numbers that are stored of one field, by the name of the tensor they are in."""
        if self.store is not None:
            return {f"store.{name}": count for name, count in self.store.field_numbers(field).items()}
        return {"weight": self.cardinalities[field]}

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        return [] if self.store is None else [f"store.{name}" for name, _ in self.store.named_parameters()]

    def forward(self, ids: Tensor, numeric: Tensor, codes: Tensor | None = None) -> Tensor:
        """Ids (B, F) and numbers (B, C) -> (B,); the codes say nothing here."""
        del codes
        rows = ids + self.offsets
        if self.store is None:
            weights = functional.embedding(rows, self.weight, sparse=self.sparse)
        else:
            weights = self.store(rows)
        return weights.sum((1, 2)) + numeric @ self.numeric


class CodedLinearTerm(nn.Module):
    """The first-order part of a model whose codes also give the weights of the ids: w_i = p_i·code + q_i.

    Args:
        code_widths: K_i of each field.
        code_shape: Of the codes of a row: (F, K), or (ΣK_i,) of fields of different ranks.
        numeric: Of the ``LinearTerm`` in whose place it comes, shape (C,); taken over as it is,
            with its dtype and device.

    Attributes:
        projection: p, of the shape of the codes of a row, as a matrix: (F, K) or (1, ΣK_i).
        bias: q, shape (F,).
        numeric: Of the numbers, shape (C,).
    """

    def __init__(self, code_widths: Sequence[int], code_shape: Sequence[int], numeric: nn.Parameter) -> None:
        super().__init__()
        self.code_widths = tuple(code_widths)
        # As the weights of a new table, those of a new model are 0.
        # A matrix whatever the ranks: training decays matrices, not vectors.
        self.projection = nn.Parameter(numeric.new_zeros(*(1, *code_shape)[-2:]))
        self.bias = nn.Parameter(numeric.new_zeros(len(self.code_widths)))
        self.numeric = numeric

    def field_numbers(self, field: int) -> dict[str, int]:
        """Count the numbers that are stored of one field, by the name of the tensor they are in."""
        return {"projection": self.code_widths[field], "bias": 1}

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        return ["projection", "bias"]

    def forward(self, ids: Tensor, numeric: Tensor, codes: Tensor) -> Tensor:
        """Numbers (B, C) and codes (B, F, K) or (B, ΣK_i) -> (B,); the ids say no more than the codes."""
        del ids
        return codes.flatten(1) @ self.projection.flatten() + self.bias.sum() + numeric @ self.numeric

    def extra_repr(self) -> str:
        """Describe the module for ``print(model)``."""
        return f"fields={len(self.bias)}, codes={tuple(self.projection.shape)}"


def first_order_of(model: nn.Module, table: str, name: str) -> LinearTerm:
    """Find the first-order term whose weights the model declares that a table may take in.

    Args:
        model: With the declaration ``absorbs``.
        table: Name of the fused table.
        name: Of the first-order term.

    Raises:
        OptionError: it is declared nowhere, or is no table over the same fields.
    """
    declared = getattr(model, "absorbs", {})
    fused = model.get_submodule(table)
    if declared.get(table) != name:
        allowed = ", ".join(f"{target} into {source}" for source, target in declared.items()) or "nothing"
        raise OptionError(
            f"the first-order weights {name} cannot be absorbed into {table}: that is right only where the "
            "model gives the codes of the table to the first-order term, which "
            f"{type(model).__name__} declares (as absorbs) for {allowed}"
        )
    term = dict(model.named_modules()).get(name)
    if not isinstance(term, LinearTerm) or not isinstance(fused, Table):
        raise OptionError(
            f"{name} of {type(model).__name__} cannot be absorbed into {table}: it is a "
            f"{type(term).__name__} beside a {type(fused).__name__}, and a LinearTerm beside a "
            "Table is needed"
        )
    if term.cardinalities != fused.cardinalities:
        raise OptionError(
            f"{name} has {len(term.cardinalities)} fields of {sum(term.cardinalities)} rows, {table} "
            f"{len(fused.cardinalities)} of {sum(fused.cardinalities)}: only a first-order term over the "
            "same fields can be absorbed"
        )
    return term


def joint_rows(table: Table, term: LinearTerm, field: int) -> Tensor:
    """[e; w] of all ids of a field, shape (V, T + 1), on the CPU."""
    return torch.cat([table.codes(field).detach(), term.rows(field).detach()], 1).cpu()
