"""One table for all categorical fields, with or without a projection behind it.

Shape legend: B batch, F fields, T embedding dimension, K code dimension, V rows of all fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional


def first_rows(cardinalities: Sequence[int]) -> Tensor:
    """Row at which each field of a fused table starts, shape (F,), int64."""
    return torch.tensor([0, *cardinalities[:-1]], dtype=torch.int64).cumsum(0)


class FieldFactors(NamedTuple):
    """What a compressed table holds of one field: e = projection·code + bias.

    Attributes:
        codes: Shape (V, K), V the rows of this field.
        projection: Shape (T, K).
        bias: Shape (T,).
    """

    codes: Tensor
    projection: Tensor
    bias: Tensor


def check_ids(ids: Tensor, names: Sequence[str]) -> None:
    """Refuse ids that do not have a column for each field.

    Raises:
        ValueError: names both shapes.
    """
    if ids.ndim != 2 or ids.shape[1] != len(names):
        raise ValueError(f"ids of shape {tuple(ids.shape)}: expected (B, {len(names)}), a column a field")


def outside_fields(ids: Tensor, limits: Tensor) -> Tensor:
    """Which ids (B, F) lie outside their field, given how many each field has (F,)."""
    return (ids < 0) | (ids >= limits)


def refuse_id(ids: Tensor, outside: Tensor, names: Sequence[str], cardinalities: Sequence[int]) -> NoReturn:
    """Name the first id outside its field.

    Args:
        ids: Shape (B, F).
        outside: Which of them are, shape (B, F).
        names: Of the fields.
        cardinalities: Rows of each field.

    Raises:
        ValueError: always.
    """
    i, field = outside.nonzero()[0].tolist()
    raise ValueError(
        f"id {int(ids[i, field])} in row {i} of field {names[field]!r} lies outside its table "
        f"of {cardinalities[field]} rows; ids count from 0 within each field"
    ) from None


class FusedEmbedding(nn.Module):
    """Embedding tables of several fields stored as one, with per-field offsets.

    Without a projection the codes are the embeddings. With one (after compression), field i
    looks up a code of K numbers and expands it: e_i = P_i·code + b_i (paper eq. 11).

    Args:
        names: Field names.
        cardinalities: Rows of each field.
        dim: T, the embedding dimension the rest of the model sees.
        code_dim: K, the width of the stored table; None keeps T and no projection.
        sparse: Whether gradients of the table are sparse (touch only the rows that occurred).
        std: Of the numbers that the table begins with.

    Attributes:
        weight: Codes of all fields, shape (V, K).
        projection: Shape (F, T, K); None without a projection.
        bias: Shape (F, T); None without a projection.
        folded: Whether the layer behind reads the codes instead of the embeddings (paper eq. 12).
    """

    offsets: Tensor
    limits: Tensor
    projection: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        names: Sequence[str],
        cardinalities: Sequence[int],
        dim: int,
        *,
        code_dim: int | None = None,
        sparse: bool = True,
        std: float = 1e-2,
    ) -> None:
        super().__init__()
        if len(names) != len(cardinalities) or not names:
            raise ValueError(f"{len(names)} names for {len(cardinalities)} cardinalities")
        self.names = tuple(names)
        self.cardinalities = tuple(cardinalities)
        self.dim = dim
        self.sparse = sparse
        self.folded = False
        self.std = std
        self.weight = nn.Parameter(torch.empty(sum(cardinalities), code_dim or dim))
        self.reset_table()
        self.register_buffer("offsets", self.rebuild_offsets(), persistent=False)
        self.register_buffer("limits", self.rebuild_limits(), persistent=False)
        if code_dim is None:
            self.register_parameter("projection", None)
            self.register_parameter("bias", None)
        else:
            projection = torch.empty(len(names), dim, code_dim)
            self.projection = nn.Parameter(nn.init.xavier_uniform_(projection))
            self.bias = nn.Parameter(torch.zeros(len(names), dim))

    def reset_table(self) -> None:
        """Draw the rows of the table anew; a projection stays."""
        nn.init.normal_(self.weight, std=self.std)

    def rebuild_offsets(self) -> Tensor:
        """The offsets anew; they are not stored in checkpoints."""
        return first_rows(self.cardinalities)

    def rebuild_limits(self) -> Tensor:
        """The rows of each field anew; they are not stored in checkpoints."""
        return torch.tensor(self.cardinalities, dtype=torch.int64)

    @property
    def code_dim(self) -> int:
        """K, the width of the stored table."""
        return self.weight.shape[1]

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(F, K), the shape of a row's codes."""
        return len(self.names), self.code_dim

    def code_columns(self, field: int) -> slice:
        """Where the codes of one field lie among the codes of a row, side by side."""
        return slice(field * self.code_dim, (field + 1) * self.code_dim)

    def factors(self, field: int) -> FieldFactors:
        """Views of what is stored of one field; to write through them change the weights themselves."""
        assert self.projection is not None
        assert self.bias is not None
        return FieldFactors(self.weight[self.rows(field)], self.projection[field], self.bias[field])

    def rows(self, field: int) -> slice:
        """Where the rows of one field lie in ``weight``."""
        start = sum(self.cardinalities[:field])
        return slice(start, start + self.cardinalities[field])

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes of some ids, (B, F) -> (B, F, K). An id counts from 0 within its field.

        Raises:
            ValueError: an id outside its field's rows. Where torch cannot say so at once (compiled, or
                on a GPU) the error is torch's own; a row of another field is never read.
        """
        check_ids(ids, self.names)
        # An id outside its field is sent outside the table, where no lookup succeeds.
        outside = outside_fields(ids, self.limits)
        rows = (ids + self.offsets).masked_fill_(outside, self.weight.shape[0])
        try:
            return functional.embedding(rows, self.weight, sparse=self.sparse)
        except IndexError:
            refuse_id(ids, outside, self.names, self.cardinalities)

    def expand(self, codes: Tensor) -> Tensor:
        """Embeddings of some codes, (B, F, K) -> (B, F, T)."""
        if self.projection is None or self.bias is None:
            return codes
        return torch.einsum("bfk,ftk->bft", codes, self.projection) + self.bias

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, F, K) and embeddings (B, F, T) of ids (B, F)."""
        codes = self.lookup(ids)
        return codes, self.expand(codes)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return (
            f"fields={len(self.names)}, rows={self.weight.shape[0]}, dim={self.dim}, codes={self.code_dim}, "
            f"folded={self.folded}"
        )
