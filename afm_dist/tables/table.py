"""What training, serving, files and methods of compression know of a table of several fields.

A table is three choices: its *address* takes an id to a slot, its *store* a slot to K numbers (the code), its
*decode* the K numbers to T (the embedding). Shape legend: B batch, F fields, T embedding dimension, K_i code
dimension of field i, V_i ids of field i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from afm_dist.tables.parts import Stored


class Decoder(NamedTuple):
    """How the codes of one field become embeddings: e = projection·code + bias.

    Attributes:
        projection: Shape (T, K_i).
        bias: Shape (T,).
    """

    projection: Tensor
    bias: Tensor


class Table(nn.Module, ABC):
    """Tables of several fields, looked up together.

    Attributes:
        names: Of the fields.
        cardinalities: V_i.
        dim: T, the embedding dimension that the rest of the model sees.
        folded: Whether the layer behind reads the codes instead of the embeddings (paper eq. 12).
    """

    names: tuple[str, ...]
    cardinalities: tuple[int, ...]
    dim: int
    folded: bool

    @property
    @abstractmethod
    def compressed(self) -> bool:
        """Whether it stores anything but T float32 numbers for each id."""

    @property
    @abstractmethod
    def code_shape(self) -> tuple[int, ...]:
        """The shape of a row's codes: (F, K), or (ΣK_i,) where the fields have different K_i."""

    @abstractmethod
    def code_columns(self, field: int) -> slice:
        """Say where the codes of one field lie among the codes of a row, side by side."""

    @abstractmethod
    def members(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each code dimension with the numbers of its fields, in the order of the codes of a row."""

    @abstractmethod
    def codes(self, field: int) -> Tensor:
        """Give the codes of all ids of one field, shape (V_i, K_i), as a lookup gives them."""

    def stored(self, code_dim: int) -> Stored | None:
        """Give what holds the codes of the fields of one code dimension; None: they are plain numbers."""
        del code_dim
        return None

    @abstractmethod
    def decoder(self, field: int) -> Decoder | None:
        """Give how codes of one field become embeddings; None: they are the embeddings."""

    @abstractmethod
    def field_numbers(self, field: int) -> dict[str, int]:
        """Count the numbers that are stored of one field, by the name of the tensor they are in."""

    def part_name(self, field: int) -> str:
        """Name the part that holds a field, as a module of this one; "" for the table itself."""
        del field
        return ""

    @abstractmethod
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Look up ids (B, F): codes (B, F, K) or (B, ΣK_i), and embeddings (B, F, T).

        An id counts from 0 within its field.

        Raises:
            ValueError: an id outside its field's rows. Where torch cannot say so at once (compiled, or
                on a GPU) the error is torch's own; a row of another field is never read.
        """


def row_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a model that hold a row for each id, as its modules say (``row_weight``)."""
    for module in model.modules():
        weight: nn.Parameter | None = getattr(module, "row_weight", None)
        if weight is not None:
            yield weight
