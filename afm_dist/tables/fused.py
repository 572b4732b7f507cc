"""One table for all categorical fields, with or without a projection behind it.

Shape legend: B batch, F fields, T embedding dimension, K code dimension, V rows of all fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.tables.parts import Address, Store, Stored
from afm_dist.tables.table import Decoder, Table


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


class FusedEmbedding(Table):
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
        address: Takes ids to slots; None: each id has its own.
        store: Holds the codes of the slots, of width ``code_dim``; None: they are ``weight``.

    Attributes:
        weight: Codes of all fields' slots, shape (V, K); None with a ``store``.
        projection: Shape (F, T, K); None without a projection.
        bias: Shape (F, T); None without a projection.
        folded: Whether the layer behind reads the codes instead of the embeddings (paper eq. 12).
    """

    offsets: Tensor
    limits: Tensor
    weight: nn.Parameter
    projection: nn.Parameter | None
    bias: nn.Parameter | None
    address: Address | None
    store: Store | None

    def __init__(
        self,
        names: Sequence[str],
        cardinalities: Sequence[int],
        dim: int,
        *,
        code_dim: int | None = None,
        sparse: bool = True,
        std: float = 1e-2,
        address: Address | None = None,
        store: Store | None = None,
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
        self.address, self.store = address, store
        if store is None:
            self.weight = nn.Parameter(torch.empty(sum(self.slots), code_dim or dim))
            self.reset_table()
        else:
            if store.width != (code_dim or dim):
                raise ValueError(f"a store of width {store.width} for codes of {code_dim or dim} numbers")
            self.register_parameter("weight", None)
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
        """Draw the rows of the table anew; a projection stays, and so does a store."""
        if self.store is None:
            nn.init.normal_(self.weight, std=self.std)

    @property
    def slots(self) -> tuple[int, ...]:
        """How many slots each field has."""
        return self.cardinalities if self.address is None else self.address.slots

    @property
    def compressed(self) -> bool:
        """Whether it has a projection, an address or a store."""
        return self.projection is not None or self.address is not None or self.store is not None

    def rebuild_offsets(self) -> Tensor:
        """Recompute the offsets; they are not stored in checkpoints."""
        return first_rows(self.slots)

    def rebuild_limits(self) -> Tensor:
        """Recompute the rows of each field; they are not stored in checkpoints."""
        return torch.tensor(self.cardinalities, dtype=torch.int64)

    @property
    def row_weight(self) -> nn.Parameter | None:
        """The parameter with a row for each slot; None with a store."""
        return self.weight

    @property
    def code_dim(self) -> int:
        """K, the width of the stored table."""
        return self.weight.shape[1] if self.store is None else self.store.width

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(F, K), the shape of a row's codes."""
        return len(self.names), self.code_dim

    def code_columns(self, field: int) -> slice:
        """Where the codes of one field lie among the codes of a row, side by side."""
        return slice(field * self.code_dim, (field + 1) * self.code_dim)

    def members(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the one code dimension, with all fields."""
        yield self.code_dim, list(range(len(self.names)))

    def codes(self, field: int) -> Tensor:
        """Give the codes of all ids of one field, shape (V_i, K)."""
        ids = torch.arange(self.cardinalities[field], device=self.limits.device)
        if self.address is not None:
            ids = self.address.of_field(field, ids)
        if self.store is not None:
            return self.store.of_field(field, ids)
        own = self.weight[self.rows(field)]
        return own if self.address is None else own[ids]

    def stored(self, code_dim: int) -> Stored | None:
        """Give address and store, if there is a store."""
        del code_dim
        return None if self.store is None else Stored(self.address, self.store)

    def decoder(self, field: int) -> Decoder | None:
        """Give the projection and the bias of one field."""
        if self.projection is None or self.bias is None:
            return None
        return Decoder(self.projection[field], self.bias[field])

    def factors(self, field: int) -> FieldFactors:
        """View what is stored of one field; writes through the views change the weights themselves."""
        assert self.projection is not None
        assert self.bias is not None
        return FieldFactors(self.weight[self.rows(field)], self.projection[field], self.bias[field])

    def rows(self, field: int) -> slice:
        """Where the slots of one field lie in ``weight``, or in the store."""
        start = sum(self.slots[:field])
        return slice(start, start + self.slots[field])

    def field_numbers(self, field: int) -> dict[str, int]:
        """Count the numbers that are stored of one field, by the name of the tensor they are in."""
        stored = {"weight": self.slots[field] * self.code_dim}
        if self.store is not None:
            stored = {f"store.{name}": count for name, count in self.store.field_numbers(field).items()}
        if self.projection is None:
            return stored
        return stored | {"projection": self.dim * self.code_dim, "bias": self.dim}

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        dense = [] if self.store is None else [f"store.{name}" for name, _ in self.store.named_parameters()]
        return dense if self.projection is None else [*dense, "projection", "bias"]

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes of some ids, (B, F) -> (B, F, K). An id counts from 0 within its field.

        Raises:
            ValueError: an id outside its field's rows. Where torch cannot say so at once (compiled, or
                on a GPU) the error is torch's own; a row of another field is never read.
        """
        check_ids(ids, self.names)
        # An id outside its field is sent outside the table, where no lookup succeeds.
        outside = outside_fields(ids, self.limits)
        slots = ids if self.address is None else self.address(ids)
        rows = (slots + self.offsets).masked_fill_(outside, sum(self.slots))
        try:
            if self.store is None:
                return functional.embedding(rows, self.weight, sparse=self.sparse)
            codes: Tensor = self.store(rows)
            return codes
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
        """Describe the module for ``print(model)``."""
        return (
            f"fields={len(self.names)}, rows={sum(self.slots)}, dim={self.dim}, codes={self.code_dim}, "
            f"folded={self.folded}"
        )
