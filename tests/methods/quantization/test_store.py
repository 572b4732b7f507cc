from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afm_dist.methods.quantization.codebooks import Codebooks, Fit, decoded
from afm_dist.methods.quantization.spec import Spec
from afm_dist.methods.quantization.store import QuantizedStore

K = 5
WORDS = [
    *(f"vq{bits}" for bits in range(1, 10)),
    *("rq2x3", "rq3x5", "pq2x3", "pq5x7", "int2", "int4", "int8", "int2-row", "int4-row", "int8-row"),
    *("mean", "vq4:20+vq2", "int8:3+rq2x3:30+mean", "float32:1+int2-row"),
]
SIZES = (61, 7, 1, 40, 203)


def filled(words: list[str], sizes: tuple[int, ...] = SIZES) -> tuple[QuantizedStore, list[Tensor]]:
    """A store of some fields, and what their rows are by the plain way to say it."""
    layouts = [Spec.parse(word).layouts(rows, K) for word, rows in zip(words, sizes, strict=True)]
    store = QuantizedStore(layouts, sparse=True)
    expected = []
    with torch.no_grad():
        for i, own in enumerate(layouts):
            parts = []
            for tier, layout in enumerate(own):
                x = torch.randn(layout.slots, K, generator=torch.Generator().manual_seed(i + 9 * tier))
                if layout.coded:
                    books = Fit(x, torch.ones(len(x)).double(), torch.eye(K), layout, seed=0).run()
                    parts.append(decoded(books, layout))
                else:
                    x = x.half().float() if layout.kind == "float16" else x
                    books = Codebooks(codes=torch.zeros(len(x), 0, dtype=torch.int64), levels=x)
                    parts.append(x)
                store.write(i, tier, books)
            expected.append(torch.cat(parts))
    return store, expected


def rows(store: QuantizedStore, n: int = 300) -> Tensor:
    slots = [torch.randint(0, size, (n,)) for size in SIZES]
    return torch.stack(slots, 1) + store.starts


def looked_up(expected: list[Tensor], store: QuantizedStore, found: Tensor) -> Tensor:
    return torch.stack([own[found[:, i] - store.starts[i]] for i, own in enumerate(expected)], 1)


@pytest.mark.parametrize("word", WORDS)
def test_a_packed_lookup_is_the_dequantised_one_to_the_bit(word: str) -> None:
    store, expected = filled([word] * 5)
    wanted = rows(store)
    for form in (store, store.packed()):
        assert torch.equal(form(wanted), looked_up(expected, store, wanted))
        for i, own in enumerate(expected):
            assert torch.equal(form.of_field(i, torch.arange(len(own))), own)


def test_fields_that_are_stored_in_different_ways() -> None:
    store, expected = filled(["vq4", "float32", "int4-row", "float16", "rq2x4"])
    wanted = rows(store)
    for form in (store, store.packed()):
        assert torch.equal(form(wanted), looked_up(expected, store, wanted))
        assert torch.equal(form(wanted[:0]), torch.zeros(0, 5, K))


@pytest.mark.parametrize("word", [*WORDS, "float32"])
def test_slots_behind_the_last_fail(word: str) -> None:
    for words in ([word] * 5, [word, "vq3", word, "int8", word]):
        store, _ = filled(words)
        for form in (store, store.packed()):
            for field in range(5):
                wanted = rows(store, 3)
                wanted[1, field] = sum(SIZES)
                with pytest.raises(IndexError):
                    form(wanted)


@pytest.mark.parametrize("word", [*WORDS, "float16", "float32"])
def test_the_bytes_that_are_stored_are_those_of_the_layout(word: str) -> None:
    store, _ = filled([word] * 5)
    packed = store.packed().state_dict()
    assert sum(tensor.nbytes for tensor in packed.values()) == sum(
        layout.bytes for own in store.layouts for layout in own
    )
    numbers: dict[str, int] = {}
    for field in range(5):
        for name, count in store.field_numbers(field).items():
            numbers[name] = numbers.get(name, 0) + count
    assert numbers == {name: tensor.numel() for name, tensor in packed.items()}


def test_levels_have_gradients_of_the_rows_that_occurred() -> None:
    store, _ = filled(["vq2"] * 5)
    store(store.starts[None]).sum().backward()
    gradient = store.groups["vq2"].levels.grad
    assert gradient is not None and int((gradient.abs().sum(1) > 0).sum()) == 4
