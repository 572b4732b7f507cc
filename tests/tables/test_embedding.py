"""What takes the place of ``nn.Embedding`` and ``nn.EmbeddingBag``, of any parts, against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.methods.low_rank.layers import ProjectedEmbedding, ProjectedEmbeddingBag
from afm_dist.tables.embedding import EmbeddingBagTable, EmbeddingTable, IdTable
from afm_dist.tables.parts import Address, SharedSlot, Store
from afm_dist.training.optimizer import sparse_weights

V, T, K, OWN, PADDING = 12, 5, 3, 7, 2
IDS = torch.randint(0, V, (6, 4), generator=torch.Generator().manual_seed(0))
IDS[0, 0], IDS[0, 1], IDS[1, 0], IDS[2] = PADDING, PADDING, V - 1, PADDING


class Steps(Store):
    """Whole numbers of eight bits, times a step."""

    codes: Tensor

    def __init__(self, slots: int, width: int) -> None:
        super().__init__()
        self.width = width
        numbers = torch.randint(-9, 9, (slots, width), generator=torch.Generator().manual_seed(1))
        self.register_buffer("codes", numbers.to(torch.int8))
        self.step = nn.Parameter(torch.tensor(0.25))

    def forward(self, rows: Tensor) -> Tensor:
        return functional.embedding(rows, self.codes) * self.step

    def of_field(self, field: int, slots: Tensor) -> Tensor:
        return self.codes[slots] * self.step

    def field_numbers(self, field: int) -> dict[str, int]:
        return {"codes": self.codes.numel(), "step": 1}


PARTS = [
    pytest.param(shared, stored, code_dim, id=f"{shared=}-{stored=}-{code_dim=}")
    for shared in (False, True)
    for stored in (False, True)
    for code_dim in (None, K)
]


def parts(shared: bool, stored: bool, code_dim: int | None) -> dict[str, Any]:
    address: Address | None = SharedSlot([V], [OWN]) if shared else None
    slots = OWN + 1 if shared else V
    return {
        "address": address,
        "store": Steps(slots, code_dim or T) if stored else None,
        "code_dim": code_dim,
    }


def filled(table: IdTable) -> IdTable:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if isinstance(table, EmbeddingTable) and table.padding is not None:
            table.padding.fill_(3.0)
    return table


def wide(table: IdTable) -> Tensor:
    """The rows by the definition: address, store, decode."""
    ids = torch.arange(V)
    slots = ids if table.address is None else ids.clamp(max=OWN)
    codes = table.codes.weight if table.store is None else table.store.codes * table.store.step
    rows = codes[slots]
    return rows if table.projection is None else rows @ table.projection.T + table.bias


@pytest.mark.parametrize(("shared", "stored", "code_dim"), PARTS)
@pytest.mark.parametrize("padding_idx", [None, PADDING, PADDING - V])
def test_a_table_looks_up_what_its_parts_say(
    shared: bool, stored: bool, code_dim: int | None, padding_idx: int | None
) -> None:
    table = filled(EmbeddingTable(V, T, padding_idx=padding_idx, **parts(shared, stored, code_dim)))
    rows = wide(table)
    if padding_idx is not None:
        rows = rows.index_copy(0, torch.tensor([PADDING]), torch.full((1, T), 3.0))

    assert table.padding_idx == (None if padding_idx is None else PADDING)
    torch.testing.assert_close(table(IDS), functional.embedding(IDS, rows))
    torch.testing.assert_close(table(IDS[0, 0]), functional.embedding(IDS[0, 0], rows))
    torch.testing.assert_close(table(IDS[:0]), torch.empty(0, 4, T))
    torch.testing.assert_close(table.weight, rows)


@pytest.mark.parametrize(("shared", "stored", "code_dim"), PARTS)
@pytest.mark.parametrize("padding_idx", [None, PADDING])
@pytest.mark.parametrize("way", ["sum", "mean", "weighted", "offsets", "last offset"])
def test_bags_are_those_of_torch_over_the_rows_that_the_parts_say(
    shared: bool, stored: bool, code_dim: int | None, padding_idx: int | None, way: str
) -> None:
    mode = "mean" if way in ("mean", "last offset") else "sum"
    last = way == "last offset"
    table = filled(
        EmbeddingBagTable(
            V,
            T,
            mode=mode,
            padding_idx=padding_idx,
            include_last_offset=last,
            **parts(shared, stored, code_dim),
        )
    )
    arguments: dict[str, Tensor] = {}
    ids = IDS
    if way == "weighted":
        weights = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(3))
        arguments = {"per_sample_weights": weights}
    elif way in ("offsets", "last offset"):
        ids = IDS.reshape(-1)
        arguments = {"offsets": torch.tensor([0, 3, 3, 10, *([24] if last else [])])}

    found = table(ids, **arguments)

    expected = functional.embedding_bag(
        ids, wide(table), mode=mode, padding_idx=padding_idx, include_last_offset=last, **arguments
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(table.weight, wide(table))


@pytest.mark.parametrize(("shared", "stored", "code_dim"), PARTS)
@pytest.mark.parametrize("bag", [False, True])
def test_gradients_are_those_of_the_definition(
    shared: bool, stored: bool, code_dim: int | None, bag: bool
) -> None:
    own = parts(shared, stored, code_dim)
    table = filled(EmbeddingBagTable(V, T, mode="sum", **own) if bag else EmbeddingTable(V, T, **own))
    table = table.double()
    shape = (6, T) if bag else (6, 4, T)
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    parameters = list(table.parameters())

    found = torch.autograd.grad((table(IDS) * weights).sum(), parameters)

    rows = wide(table)[IDS]
    expected = torch.autograd.grad(((rows.sum(1) if bag else rows) * weights).sum(), parameters)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(("shared", "stored", "code_dim"), PARTS)
@pytest.mark.parametrize("outside", [-1, V])
def test_an_id_outside_is_an_error_and_never_a_row_of_another(
    shared: bool, stored: bool, code_dim: int | None, outside: int
) -> None:
    table = EmbeddingTable(V, T, **parts(shared, stored, code_dim))

    with pytest.raises(IndexError):
        table(torch.tensor([0, outside]))


def test_a_store_is_all_that_is_stored() -> None:
    table = EmbeddingTable(V, T, **parts(shared=True, stored=True, code_dim=None))

    assert set(table.state_dict()) == {"store.codes", "store.step"}
    other = EmbeddingTable(V, T, **parts(shared=True, stored=True, code_dim=None))
    other.load_state_dict(table.state_dict())
    assert torch.equal(other(IDS), table(IDS))
    assert table.factor_names() == ["store.step"]


def test_a_sparse_table_is_trained_by_its_slots() -> None:
    table = EmbeddingTable(V, T, sparse=True, **parts(shared=True, stored=False, code_dim=K))
    model = nn.ModuleDict({"item": table})

    table(IDS).sum().backward()

    assert list(sparse_weights(model)) == ["item.codes.weight"]
    assert table.codes.weight.grad.is_sparse
    assert len(table.codes.weight) == OWN + 1


@pytest.mark.parametrize("kind", [ProjectedEmbedding, ProjectedEmbeddingBag])
def test_the_codes_of_a_narrow_table_may_have_parts_of_their_own(kind: Any) -> None:
    bag = kind is ProjectedEmbeddingBag
    options = {"mode": "sum"} if bag else {}
    table = filled(kind(V, T, K, **options))
    own = parts(shared=True, stored=True, code_dim=None) | {"store": Steps(OWN + 1, K)}
    narrow = EmbeddingBagTable(V, K, mode="sum", **own) if bag else EmbeddingTable(V, K, **own)
    table.codes = narrow

    rows = wide(narrow) @ table.projection.T + table.bias
    torch.testing.assert_close(table.weight, rows)
    torch.testing.assert_close(table(IDS), rows[IDS].sum(1) if bag else rows[IDS])


def test_a_store_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="a store of width 3 for codes of 5 numbers"):
        EmbeddingTable(V, T, store=Steps(V, K))
