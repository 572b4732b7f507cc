"""Tables whose fields have codes of different widths: fields of equal rank are looked up together.

Shape legend: B batch, F fields, T embedding dimension, K_i rank of field i, G fields of one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.tables.fused import FieldFactors, FusedEmbedding, check_ids, outside_fields, refuse_id
from afm_dist.tables.parts import Stored
from afm_dist.tables.table import Decoder, Table


class MeanEmbedding(nn.Module):
    """Fields of rank 0: whatever the id, its field's mean. They have no codes, and no rows are stored.

    Args:
        names: Field names.
        cardinalities: Ids of each field.
        dim: T.

    Attributes:
        bias: The means, shape (G, T).
    """

    limits: Tensor

    def __init__(self, names: Sequence[str], cardinalities: Sequence[int], dim: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.cardinalities = tuple(cardinalities)
        self.dim = dim
        self.bias = nn.Parameter(torch.zeros(len(names), dim))
        self.register_buffer("limits", self.rebuild_limits(), persistent=False)

    def rebuild_limits(self) -> Tensor:
        """Recompute the ids of each field; they are not stored in checkpoints."""
        return torch.tensor(self.cardinalities, dtype=torch.int64)

    def factors(self, field: int) -> FieldFactors:
        """View what is stored of one field: codes and a projection of width 0, and its mean."""
        bias = self.bias[field]
        return FieldFactors(bias.new_empty(self.cardinalities[field], 0), bias.new_empty(self.dim, 0), bias)

    def codes(self, field: int) -> Tensor:
        """Give the codes of all ids of one field, of width 0."""
        return self.factors(field).codes

    def decoder(self, field: int) -> Decoder:
        """Give a projection of width 0, and the mean."""
        _, projection, bias = self.factors(field)
        return Decoder(projection, bias)

    def field_numbers(self, field: int) -> dict[str, int]:
        """Count the numbers that are stored of one field: its mean."""
        del field
        return {"bias": self.dim}

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        return ["bias"]

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, G, 0) and embeddings (B, G, T) of ids (B, G).

        Raises:
            ValueError: an id outside its field, as in ``FusedEmbedding.lookup``.
        """
        # A table with a row a field; as there, an id outside its field is sent outside the table.
        outside = outside_fields(ids, self.limits)
        rows = torch.arange(len(self.names), device=ids.device).expand_as(ids)
        try:
            vectors = functional.embedding(rows.masked_fill(outside, len(self.names)), self.bias)
        except IndexError:
            refuse_id(ids, outside, self.names, self.cardinalities)
        return vectors.new_empty(*ids.shape, 0), vectors

    def extra_repr(self) -> str:
        """Describe the module for ``print(model)``."""
        return f"fields={len(self.names)}, dim={self.dim}"


class GroupedEmbedding(Table):
    """Compressed tables of several fields, each of a rank of its own: e_i = P_i·code_i + b_i.

    The embeddings come in the order of the fields. The codes of a row lie side by side: of the fields
    with the smallest rank first, and fields of one rank in their own order (``code_columns``).

    Args:
        names: Field names.
        cardinalities: Rows of each field.
        dim: T, the embedding dimension the rest of the model sees.
        ranks: K_i; 0: only the field's mean.
        sparse: Whether the gradients of the tables are sparse.

    Attributes:
        groups: The fields of each rank, by the rank, ascending: a ``FusedEmbedding`` with projections, of
            rank 0 a ``MeanEmbedding``. In a ``state_dict`` ``groups.3.weight`` is the table of rank 3.
        ranks: K_i.
        folded: Whether the layer behind reads the codes instead of the embeddings (paper eq. 12).
    """

    columns: Tensor

    def __init__(
        self,
        names: Sequence[str],
        cardinalities: Sequence[int],
        dim: int,
        ranks: Sequence[int],
        *,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        if not len(names) == len(cardinalities) == len(ranks) or not names:
            raise ValueError(f"{len(names)} names, {len(cardinalities)} cardinalities, {len(ranks)} ranks")
        self.names = tuple(names)
        self.cardinalities = tuple(cardinalities)
        self.dim = dim
        self.ranks = tuple(ranks)
        self.sparse = sparse
        self.folded = False
        self.groups = nn.ModuleDict()
        for rank, fields in self.members():
            own, rows = [names[i] for i in fields], [cardinalities[i] for i in fields]
            self.groups[str(rank)] = (
                FusedEmbedding(own, rows, dim, code_dim=rank, sparse=sparse)
                if rank
                else MeanEmbedding(own, rows, dim)
            )
        self.register_buffer("columns", self.rebuild_columns(), persistent=False)
        order = [i for _, fields in self.members() for i in fields]
        self._places = [order.index(i) for i in range(len(order))]

    def members(self) -> Iterator[tuple[int, list[int]]]:
        """Each rank with the numbers of its fields, in the order of the codes of a row."""
        for rank in sorted(set(self.ranks)):
            yield rank, [i for i, own in enumerate(self.ranks) if own == rank]

    def rebuild_columns(self) -> Tensor:
        """Numbers of the fields, group after group; they are not stored in checkpoints."""
        return torch.tensor([i for _, fields in self.members() for i in fields])

    @property
    def compressed(self) -> bool:
        """Whether it is compressed: always."""
        return True

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(ΣK_i,), the shape of a row's codes."""
        return (sum(self.ranks),)

    def code_columns(self, field: int) -> slice:
        """Where the codes of one field lie among the codes of a row."""
        start = sum(own for i, own in enumerate(self.ranks) if (own, i) < (self.ranks[field], field))
        return slice(start, start + self.ranks[field])

    def codes(self, field: int) -> Tensor:
        """Give the codes of all ids of one field, shape (V_i, K_i)."""
        _, group, place = self._place(field)
        return group.codes(place)

    def stored(self, code_dim: int) -> Stored | None:
        """Give what holds the codes of the fields of one rank."""
        group = self.groups[str(code_dim)]
        return group.stored(code_dim) if isinstance(group, FusedEmbedding) else None

    def decoder(self, field: int) -> Decoder | None:
        """Give the projection and the bias of one field."""
        _, group, place = self._place(field)
        return group.decoder(place)

    def factors(self, field: int) -> FieldFactors:
        """View what is stored of one field; writes through the views change the weights themselves."""
        _, group, place = self._place(field)
        return group.factors(place)

    def field_numbers(self, field: int) -> dict[str, int]:
        """Count the numbers that are stored of one field, by the name of the tensor they are in."""
        key, group, place = self._place(field)
        return {f"groups.{key}.{name}": count for name, count in group.field_numbers(place).items()}

    def part_name(self, field: int) -> str:
        """Name the group of a field, as a module of this one."""
        return f"groups.{self.ranks[field]}"

    def _place(self, field: int) -> tuple[str, FusedEmbedding | MeanEmbedding, int]:
        """Find the group of a field, and which of its fields it is."""
        rank = self.ranks[field]
        group = self.groups[str(rank)]
        assert isinstance(group, FusedEmbedding | MeanEmbedding)
        return str(rank), group, sum(own == rank for own in self.ranks[:field])

    def factor_names(self) -> list[str]:
        """Name the dense weights that compression made."""
        return []  # its groups name their own

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, ΣK_i) and embeddings (B, F, T) of ids (B, F). An id counts from 0 within its field.

        Raises:
            ValueError: an id outside its field's rows, as in ``FusedEmbedding.lookup``.
        """
        check_ids(ids, self.names)
        sizes = [len(fields) for _, fields in self.members()]
        codes: list[Tensor] = []
        vectors: list[Tensor] = []
        for group, own in zip(
            self.groups.values(), ids.index_select(1, self.columns).split(sizes, 1), strict=True
        ):
            own_codes, own_vectors = group(own)
            codes.append(own_codes.flatten(1))
            vectors += own_vectors.unbind(1)
        # Field by field they lie in memory as they come out of a group: each is copied once, as one block.
        return torch.cat(codes, 1), torch.stack([vectors[place] for place in self._places]).transpose(0, 1)

    def extra_repr(self) -> str:
        """Describe the module for ``print(model)``."""
        return f"fields={len(self.names)}, dim={self.dim}, codes={sum(self.ranks)}, folded={self.folded}"
