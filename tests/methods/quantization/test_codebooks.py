from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from afm_dist.methods.quantization import codebooks
from afm_dist.methods.quantization.codebooks import Codebooks, Fit, balanced, decoded
from afm_dist.methods.quantization.lloyd import nearest
from afm_dist.methods.quantization.metric import FLOOR, floored
from afm_dist.methods.quantization.spec import Layout, Spec
from tests.methods.quantization.exact import best_error

K = 5
WORDS = ["vq3", "rq2x3", "pq2x3", "int4", "int2", "int4-row", "int2-row"]
every_store = pytest.mark.parametrize("word", WORDS)


def rows(n: int, width: int = K, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator) * torch.arange(1, width + 1) + 3


def weights(n: int) -> Tensor:
    return (1000 / (torch.arange(n, dtype=torch.float64) + 1)).ceil()


def metric(width: int = K) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    u = torch.randn(width, generator=generator, dtype=torch.float64)
    return torch.outer(u, u) + 0.1 * torch.eye(width, dtype=torch.float64)


def fitted(
    word: str, x: Tensor, w: Tensor | None = None, G: Tensor | None = None
) -> tuple[Codebooks, Layout]:
    (layout,) = Spec.parse(word).layouts(len(x), x.shape[1])
    w, G = weights(len(x)) if w is None else w, metric(x.shape[1]) if G is None else G
    return Fit(x, w, G, layout, seed=3).run(), layout


def error(x: Tensor, found: Tensor, w: Tensor, G: Tensor) -> float:
    left = (x - found).double()
    return float(((left @ G) * left).sum(1) @ w / w.sum())


@every_store
def test_the_error_never_rises(word: str) -> None:
    books, _ = fitted(word, rows(3000))
    assert len(books.errors) >= 1
    for before, after in zip(books.errors, books.errors[1:], strict=False):
        assert after <= before * (1 + 1e-6)


@every_store
def test_the_error_that_is_noted_is_that_of_what_comes_out(word: str) -> None:
    x, w = rows(3000), weights(3000)
    books, layout = fitted(word, x)
    floor = codebooks.COUPLED_FLOOR if layout.kind in ("int", "pq") else FLOOR
    # The levels are rounded to float16 afterwards.
    assert error(x, decoded(books, layout), w, floored(metric(), floor)) == pytest.approx(
        books.errors[-1], rel=2e-2
    )


@every_store
def test_levels_and_scales_are_float16_numbers(word: str) -> None:
    books, _ = fitted(word, rows(500))
    assert torch.equal(books.levels, books.levels.half().float())
    if books.scales is not None:
        assert torch.equal(books.scales, books.scales.half().float())


@every_store
def test_more_bits_are_less_error(word: str) -> None:
    x, w = rows(2000), weights(2000)
    finer = {"vq3": "vq5", "rq2x3": "rq2x5", "pq2x3": "pq2x5"}.get(
        word, word.replace("4", "8").replace("2", "4")
    )
    coarse, fine = (error(x, decoded(*fitted(each, x)), w, metric()) for each in (word, finer))
    assert fine < 0.7 * coarse


@every_store
@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_rows(word: str, n: int) -> None:
    x = rows(n)
    books, layout = fitted(word, x)
    found = decoded(books, layout)
    assert found.shape == x.shape and found.isfinite().all()
    if layout.kind == "vq" and n <= layout.codewords:
        torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


@every_store
def test_equal_rows(word: str) -> None:
    x = torch.full((300, K), 0.25)
    torch.testing.assert_close(decoded(*fitted(word, x)), x, rtol=1e-3, atol=1e-3)


@every_store
def test_the_same_codes_each_time(word: str) -> None:
    first, second = (fitted(word, rows(2000))[0] for _ in range(2))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.levels, second.levels)


@pytest.mark.parametrize("levels", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("kind", ["normal", "heavy", "counted", "two heaps"])
def test_levels_of_numbers_are_within_a_percent_of_the_best(levels: int, kind: str) -> None:
    random = np.random.default_rng(levels)
    x = random.normal(size=500).astype(np.float32)
    if kind == "heavy":
        x = random.laplace(size=500).astype(np.float32)
    if kind == "two heaps":
        x = np.concatenate([random.normal(-2, 0.1, 250), random.normal(1, 1, 250)]).astype(np.float32)
    w = weights(500).numpy() if kind == "counted" else np.ones(500)
    bits = levels.bit_length() - 1

    books, layout = fitted(f"vq{bits}", torch.from_numpy(x)[:, None], torch.from_numpy(w), torch.eye(1))

    one = torch.eye(1, dtype=torch.float64)
    found = error(torch.from_numpy(x)[:, None], decoded(books, layout), torch.from_numpy(w), one)
    assert found <= 1.01 * best_error(x.astype(np.float64), w, levels)


def test_many_levels_of_numbers_are_as_good_as_theory_says() -> None:
    x = torch.randn(30_000, 1, generator=torch.Generator().manual_seed(0))
    books, layout = fitted("vq8", x, torch.ones(30_000, dtype=torch.float64), torch.eye(1))
    # Panter and Dite: √3·π/2·4^-b of a normal variance.
    assert error(x, decoded(books, layout), torch.ones(30_000).double(), torch.eye(1).double()) < 2.72 / 4**8


def test_what_the_logit_depends_on_decides() -> None:
    x, w = rows(3000), weights(3000)
    for word in ("vq3", "rq2x3", "pq2x3", "int2"):
        aware = error(x, decoded(*fitted(word, x)), w, metric())
        blind = error(x, decoded(*fitted(word, x, G=torch.eye(K))), w, metric())
        assert aware < 0.7 * blind, word


def test_frequent_rows_are_finer() -> None:
    x = rows(3000)
    left = (x - decoded(*fitted("vq5", x))).double()
    errors = ((left @ metric()) * left).sum(1)
    assert errors[:30].mean() < 0.5 * errors[1500:].mean()


def test_nearest_is_nearest() -> None:
    x, books = rows(500), rows(40, seed=1)
    assert torch.equal(nearest(x, books), torch.cdist(x.double(), books.double()).argmin(1))
    line, levels = rows(500, 1), rows(40, 1, seed=1)
    assert torch.equal(nearest(line, levels), torch.cdist(line.double(), levels.double()).argmin(1))


def test_codewords_without_rows_find_some() -> None:
    # Three heaps, and first codewords that all lie in one of them.
    x = torch.cat([torch.randn(100, 2) * 0.01 + shift for shift in (0, 5, 9)])
    books, layout = fitted("vq2", x, torch.ones(300, dtype=torch.float64), torch.eye(2))
    assert len(books.codes.unique()) == 4
    assert error(x, decoded(books, layout), torch.ones(300).double(), torch.eye(2).double()) < 1e-3


def test_coordinates_are_shared_out_by_what_they_add_to_the_error() -> None:
    owners = balanced(torch.tensor([8.0, 1, 1, 1, 5, 0]), 2)
    sums = [float(torch.tensor([8.0, 1, 1, 1, 5, 0])[owners == i].sum()) for i in range(2)]
    assert sorted(sums) == [8, 8]
    assert set(balanced(torch.tensor([1.0, 0, 0, 0]), 4).tolist()) == {0, 1, 2, 3}
    assert len(balanced(torch.zeros(5), 5).unique()) == 5


@pytest.mark.parametrize("word", ["vq4", "rq2x3", "pq2x3", "int4", "int2"])
def test_codebooks_of_many_rows_are_nearly_those_of_a_fit_to_all(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = rows(20_000), weights(20_000)
    (layout,) = Spec.parse(word).layouts(len(x), K)
    means = []
    for size in (1 << 15, 1 << 11):
        monkeypatch.setattr(codebooks, "SAMPLE_ROWS", size)
        fits = [Fit(x, w, metric(), layout, seed).run() for seed in range(3)]
        means.append(sum(error(x, decoded(books, layout), w, metric()) for books in fits) / 3)
        for books in fits:
            assert all(b <= a * (1 + 1e-6) for a, b in zip(books.errors, books.errors[1:], strict=False))
    # From seed to seed a fit to all rows differs by up to 10 %.
    assert means[1] < 1.1 * means[0]
