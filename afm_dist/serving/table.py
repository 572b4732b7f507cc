"""The fused table in the form for inference: code and first-order weight of an id side by side.

Shape legend: B batch, F fields, K_i code dimension of field i, V rows of all fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afm_dist.serving.rows import EmptyRows, FloatRows, Int8Rows, PackedRows, Precision, StoredRows
from afm_dist.tables.first_order import CodedLinearTerm, LinearTerm
from afm_dist.tables.fused import check_ids, first_rows, outside_fields, refuse_id
from afm_dist.tables.parts import Store, Stored
from afm_dist.tables.table import Table


class PackedTable(nn.Module):
    """The tables of all fields: a lookup reads all numbers of an id from one place.

    Fields with codes of one width are one table. The codes of a row come as the model has them side by side.

    Args:
        embedding: Its codes.
        linear: Of the same model; its weights are packed where it has a table of its own.
        precision: Of plain numbers in memory; what a store holds stays as it is, and what comes out is
            float32.

    Raises:
        OptionError: numbers that the precision cannot hold.

    Attributes:
        groups: The rows of the fields of each width, the narrowest first.
    """

    offsets: Tensor
    limits: Tensor
    ends: Tensor
    order: Tensor
    starts: Tensor

    def __init__(self, embedding: Table, linear: LinearTerm | CodedLinearTerm, precision: Precision) -> None:
        super().__init__()
        self.names = embedding.names
        self.cardinalities = embedding.cardinalities
        plain = isinstance(linear, LinearTerm) and linear.store is None
        weights = linear.weight.detach() if isinstance(linear, LinearTerm) and plain else None
        # First-order weights in a store stay there, and are looked up beside the codes.
        self.first_order: Store | None = None
        if isinstance(linear, LinearTerm) and linear.store is not None:
            self.first_order = linear.store.packed()
            self.register_buffer("starts", linear.offsets.clone())
        starts = first_rows(self.cardinalities).tolist()
        offsets, ends = torch.zeros(2, len(self.names), dtype=torch.int64)
        groups, order, self.sizes = [], [], []
        for code_dim, fields in embedding.members():
            sizes = [self.cardinalities[i] for i in fields]
            stored = embedding.stored(code_dim)
            rows = _empty_rows(sizes, code_dim, weights is not None, precision, linear.numeric.device, stored)
            for place, (i, first) in enumerate(zip(fields, first_rows(sizes).tolist(), strict=True)):
                own = None if weights is None else weights[starts[i] : starts[i] + sizes[place]]
                codes = (
                    embedding.codes(i).detach()
                    if stored is None
                    else linear.numeric.new_empty(sizes[place], 0)
                )
                rows.write(place, slice(first, first + sizes[place]), codes, own)
                offsets[i], ends[i] = first, sum(sizes)
            groups.append(rows)
            order += fields
            self.sizes.append(len(fields))
        self.groups = nn.ModuleList(groups)
        for name, value in (
            ("offsets", offsets),
            ("ends", ends),
            ("limits", torch.tensor(self.cardinalities)),
            ("order", torch.tensor(order)),
        ):
            self.register_buffer(name, value.to(linear.numeric.device, copy=True))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes (B, ΣK_i) of ids (B, F) and the sums of their first-order weights (B,).

        There are no sums where the codes give the weights.

        Raises:
            ValueError: an id outside its field's rows. Where torch cannot say so at once (compiled,
                exported, or on a GPU) the error is that of the runtime; a row of another field is never read.
        """
        check_ids(ids, self.names)
        # An id outside its field is sent outside the table, where no lookup succeeds.
        outside = outside_fields(ids, self.limits)
        rows = torch.where(outside, self.ends, ids + self.offsets)
        if torch.compiler.is_compiling():
            return self._with_first_order(ids, outside, *self._lookup(rows))
        try:
            return self._with_first_order(ids, outside, *self._lookup(rows))
        except IndexError:
            refuse_id(ids, outside, self.names, self.cardinalities)

    def check(self, ids: Tensor) -> None:
        """Refuse ids (B, F) of which one lies outside its field's rows, before anything else is done.

        Raises:
            ValueError: names the first of them.
        """
        check_ids(ids, self.names)
        outside = outside_fields(ids, self.limits)
        if outside.any():
            refuse_id(ids, outside, self.names, self.cardinalities)

    def _with_first_order(
        self, ids: Tensor, outside: Tensor, codes: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Add the sums of first-order weights that are in a store of their own."""
        if self.first_order is None:
            return codes, weights
        found: Tensor = self.first_order(torch.where(outside, sum(self.cardinalities), ids + self.starts))
        return codes, found.sum((1, 2))

    def _lookup(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        if len(self.groups) == 1:
            codes, weights = self.groups[0](rows)
            # Codes of no width have no size from which ONNX could tell the flat one.
            flat = codes.flatten(1) if codes.shape[2] else codes.new_zeros(rows.shape[0], 0)
            return flat, None if weights is None else weights.sum(1)
        parts = rows.index_select(1, self.order).split(self.sizes, 1)
        found = [group(part) for group, part in zip(self.groups, parts, strict=True)]
        codes = torch.cat([codes.flatten(1) for codes, _ in found], 1)
        weights = [weights for _, weights in found if weights is not None]
        return codes, torch.cat(weights, 1).sum(1) if weights else None

    def extra_repr(self) -> str:
        """Describe the module for ``print(model)``."""
        return f"fields={len(self.names)}, rows={sum(self.cardinalities)}"


def _empty_rows(
    sizes: Sequence[int],
    code_dim: int,
    weighted: bool,
    precision: Precision,
    device: torch.device,
    stored: Stored | None = None,
) -> PackedRows:
    if stored is not None:
        weights = _empty_rows(sizes, 0, True, precision, device) if weighted else None
        return StoredRows(stored, sizes, weights)
    if code_dim == 0 and not weighted:
        return EmptyRows(sum(sizes), device=device)
    if precision == "int8":
        return Int8Rows(sum(sizes), len(sizes), code_dim, weighted=weighted, device=device)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return FloatRows(sum(sizes), code_dim, weighted=weighted, dtype=dtype, device=device)
