from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.quantization.config import Quantization
from afm_dist.methods.quantization.embeddings import QuantizedEmbedding
from afm_dist.statistics.keys import module_key
from afm_dist.statistics.moments import moments_of_table
from afm_dist.statistics.statistics import Statistics

V, T = 200, 6
G = torch.diag(torch.arange(1.0, T + 1)).double()


def known(*names: str) -> Statistics:
    counts = torch.arange(V, 0, -1)
    moments = {module_key(name): moments_of_table(torch.randn(V, T), counts) for name in names}
    return Statistics(moments, dict.fromkeys(moments, G), {module_key(name): counts for name in names})


def replaced(original: nn.Module, word: str = "vq4", *before: PlanEntry) -> Any:
    model = nn.ModuleDict({"table": original}).eval()
    name = "table.codes" if before else "table"
    compress_(model, Plan(entries=(*before, PlanEntry(name, Quantization(store=word)))), known("table"))
    return model["table"]


def rows_of(module: Any) -> Tensor:
    return module.weight.detach()


@pytest.mark.parametrize("word", ["vq4", "int4-row", "rq2x3:50+vq2", "vq3@40", "pq2x3"])
@pytest.mark.parametrize("padding", [None, 3])
def test_an_embedding_looks_up_its_rows(word: str, padding: int | None) -> None:
    original = nn.Embedding(V, T, padding_idx=padding)
    new = replaced(original, word)
    for ids in (torch.tensor([[0, 3, 5], [199, 3, 7]]), torch.tensor(3), torch.zeros(0, dtype=torch.int32)):
        found = new(ids)
        assert found.shape == (*ids.shape, T)
        if padding is None:
            assert torch.equal(found, rows_of(new)[ids.long()])
    if padding is not None:
        assert torch.equal(new(torch.tensor([3, 3])), original.weight[[3, 3]])
    error = (rows_of(new) - original.weight).square().mean()
    assert 0 < error < original.weight.var()


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("last", [False, True])
def test_bags_are_those_of_a_table_of_the_quantised_rows(mode: str, padding: int | None, last: bool) -> None:
    arguments: dict[str, Any] = {"mode": mode, "padding_idx": padding, "include_last_offset": last}
    new = replaced(nn.EmbeddingBag(V, T, **arguments))
    plain = nn.EmbeddingBag.from_pretrained(rows_of(new), **arguments)
    ids = torch.randint(0, 8, (5, 4), generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 3, 3, 9, 20] if last else [0, 3, 3, 9])
    torch.testing.assert_close(new(ids), plain(ids))
    torch.testing.assert_close(new(ids.flatten(), offsets), plain(ids.flatten(), offsets))
    if mode == "sum":
        weights = torch.rand(5, 4)
        torch.testing.assert_close(
            new(ids, per_sample_weights=weights), plain(ids, per_sample_weights=weights)
        )


@pytest.mark.parametrize("word", ["vq4", "rq2x3:50+vq2", "vq3@40", "int8"])
@pytest.mark.parametrize("wrong", [-1, V, V + 7])
def test_ids_outside_fail(word: str, wrong: int) -> None:
    for original in (nn.Embedding(V, T), nn.EmbeddingBag(V, T, mode="sum")):
        with pytest.raises(IndexError):
            replaced(original, word)(torch.tensor([[1, wrong]]))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_codes_of_low_rank_are_quantised(kind: Any, tmp_path: Path) -> None:
    low = PlanEntry("table", LowRank(rank=3))
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": kind(V, T)}).eval()
    plan = Plan(entries=(low, PlanEntry("table.codes", Quantization(store="vq6"))))
    before = model["table"].weight.detach().clone()

    compress_(model, plan, known("table"))
    save_pretrained(model, str(tmp_path))

    new: Any = model["table"]
    codes = new.codes.weight
    assert codes.shape == (V, 3) and len(codes.unique(dim=0)) <= 64
    again: Any = from_pretrained(str(tmp_path), model=nn.ModuleDict({"table": kind(V, T)}))
    ids = torch.arange(V)[:, None]
    assert torch.equal(again["table"](ids), new(ids))
    assert (new(ids).view(V, T) - before).square().mean() < 0.8 * before.var()


def test_what_cannot_be_quantised_is_refused() -> None:
    for original, words in (
        (nn.Embedding(V, T, max_norm=1.0), "max_norm=1.0"),
        (nn.Embedding(V, T, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.EmbeddingBag(V, T, mode="max"), "mode='max'"),
    ):
        with pytest.raises(OptionError, match=words):
            replaced(original)
    model = nn.ModuleDict({"table": nn.Embedding(V, T)})
    plan = Plan(entries=(PlanEntry("table", Quantization(store="vq4", fields={"a": "vq2"})),))
    with pytest.raises(OptionError, match="the table has no field 'a'"):
        compress_(model, plan, known("table"))


def test_ids_that_nobody_counted_count_alike() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(V, T)})
    plan = Plan(entries=(PlanEntry("table", Quantization(store="vq4", metric="plain")),))
    compress_(model, plan, {})
    assert isinstance(model["table"], QuantizedEmbedding)
