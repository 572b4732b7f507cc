"""The parts of a table that are not the plain ones: which slot an id has, and what a slot holds.

A fused table without parts has a slot for each id and K float32 numbers in each. Shape legend: B batch,
F fields, V_i ids and S_i slots of field i, K code dimension, n ids.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Address(nn.Module, ABC):
    """Takes ids to slots, field by field.

    Attributes:
        slots: S_i, how many each field has.
    """

    slots: tuple[int, ...]

    @abstractmethod
    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, F), each within its field -> slots (B, F), each within its field."""

    @abstractmethod
    def of_field(self, field: int, ids: Tensor) -> Tensor:
        """Ids of one field, any shape -> slots of the same shape."""


class SharedSlot(Address):
    """A threshold: from some id on, all ids of a field share the slot behind those that have their own.

    Ids count down by frequency, so the shared slot is that of the rare ones.

    Args:
        cardinalities: V_i.
        own: How many ids of each field have a slot of their own; those behind share one.
    """

    limits: Tensor

    def __init__(self, cardinalities: Sequence[int], own: Sequence[int]) -> None:
        super().__init__()
        if len(own) != len(cardinalities) or any(
            not 0 <= n <= v for n, v in zip(own, cardinalities, strict=False)
        ):
            raise ValueError(f"own slots {tuple(own)} of fields of {tuple(cardinalities)} ids")
        self.own = tuple(own)
        self.slots = tuple(min(n + 1, v) for n, v in zip(own, cardinalities, strict=True))
        self.register_buffer("limits", self.rebuild_limits(), persistent=False)

    def rebuild_limits(self) -> Tensor:
        """Compute the last slot of each field anew; it is not stored in checkpoints."""
        return torch.tensor(self.slots, dtype=torch.int64) - 1

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, F) -> slots (B, F)."""
        return torch.minimum(ids, self.limits)

    def of_field(self, field: int, ids: Tensor) -> Tensor:
        """Ids of one field -> slots."""
        return ids.clamp(max=self.slots[field] - 1)


class Store(nn.Module, ABC):
    """Holds K numbers for each slot of all fields, in as many bytes as it likes.

    Attributes:
        width: K.
    """

    width: int

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """Look up slots.

        Args:
            rows: Slots counted over all fields, a column a field, shape (B, F).

        Returns:
            Codes (B, F, K), floating point.

        Raises:
            IndexError: a slot behind the last of all fields.
        """

    @abstractmethod
    def of_field(self, field: int, slots: Tensor) -> Tensor:
        """Look up slots of one field, each within it, shape (n,) -> codes (n, K)."""

    def packed(self) -> Store:
        """Give the form for inference: the same numbers, in memory in no more bytes than a file has."""
        return copy.deepcopy(self)

    @abstractmethod
    def field_numbers(self, field: int) -> dict[str, int]:
        """Count the numbers that are stored of one field, by the name of the tensor they are in."""


class EmptyStore(Store):
    """Stands for a store whose rows lie elsewhere: it has a width and no slots."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, rows: Tensor) -> Tensor:
        """Refuse every slot."""
        raise IndexError(f"slots {tuple(rows.shape)} of a store without rows")

    def of_field(self, field: int, slots: Tensor) -> Tensor:
        """Refuse every slot."""
        del field
        return self.forward(slots)

    def field_numbers(self, field: int) -> dict[str, int]:
        """Count none."""
        del field
        return {}


class Stored(NamedTuple):
    """What holds the codes of fields that are looked up together, where they are not plain numbers.

    Attributes:
        address: Takes ids to slots; None: each id has its own.
        store: Holds the codes of the slots.
    """

    address: Address | None
    store: Store
