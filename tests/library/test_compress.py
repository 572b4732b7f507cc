"""A model of one's own within a budget: what is predicted is what comes of it."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import afm_dist
from afm_dist.dataset.manifest import Field
from afm_dist.errors import OptionError
from afm_dist.methods.quantization.config import Quantization
from afm_dist.models import build_model
from tests.jobs.commands import ROOT


class Model(nn.Module):
    """Embeddings, bags and layers; a part that no logit depends on."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.item = nn.Embedding(200, 8)
        self.tags = nn.EmbeddingBag(50, 6, mode="mean")
        self.body = nn.Sequential(nn.Linear(14, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        self.head = nn.Linear(24, 1)
        self.aside = nn.Linear(14, 9)
        with torch.no_grad():
            for parameter in self.parameters():
                scale = 0.6 ** torch.arange(parameter.shape[-1])
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        items, tags = batch
        hidden = torch.cat([self.item(items), self.tags(tags)], 1)
        self.aside(hidden)
        return self.head(self.body(hidden)).squeeze(1)


def batches(count: int = 4, rows: int = 250) -> list[tuple[Tensor, Tensor]]:
    drawn = (torch.Generator().manual_seed(i) for i in range(count))
    return [
        (torch.randint(0, 200, (rows,), generator=one), torch.randint(0, 50, (rows, 3), generator=one))
        for one in drawn
    ]


def size(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches()])


@pytest.fixture(scope="module")
def statistics() -> afm_dist.Statistics:
    return afm_dist.collect_statistics(Model(), batches(), [nn.Linear, nn.Embedding, nn.EmbeddingBag])


@pytest.mark.parametrize("ratio", [1.2, 2.0, 3.0])
def test_the_model_is_as_small_as_was_asked_and_as_was_predicted(ratio: float) -> None:
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    result = afm_dist.compress(model, iter(batches()), target_ratio=ratio)

    assert result.bytes_before == size(model)
    assert result.bytes_after == size(result.model) <= size(model) / ratio
    assert logits(result.model).shape == logits(model).shape
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_predicted_change_of_the_logit_is_about_the_one_it_has() -> None:
    result = afm_dist.compress(Model(), batches(), target_ratio=1.5)

    measured = float((logits(result.model) - logits(Model())).square().mean())
    # To first order, and as if errors of modules were not correlated.
    assert result.error / 4 < measured < result.error * 4


def test_more_room_never_costs_more(statistics: afm_dist.Statistics) -> None:
    from afm_dist.library.budget import within

    found = [within(statistics, afm_dist.Budget(ratio=ratio)) for ratio in (3.0, 2.0, 1.5, 1.1)]

    for tight, wide in itertools.pairwise(found):
        assert tight.bytes < wide.bytes
        assert tight.error >= wide.error


def test_no_choice_of_ranks_within_the_budget_loses_less(statistics: afm_dist.Statistics) -> None:
    from afm_dist.library.budget import _choices, within
    from afm_dist.methods.low_rank.config import LowRank

    methods = [LowRank(rank=1)]
    outline: Any = statistics.bytes_of
    every = {
        name: [(0, 0.0)]
        + [(choice.cost, choice.error) for choice in _choices(name, module, statistics, outline, methods)]
        for name, module in outline.targets.items()
        if name != "aside"
    }
    for ratio in (1.2, 2.0, 3.0):
        spare = outline.bytes / ratio - outline.bytes
        best = min(
            sum(error for _, error in combination)
            for combination in itertools.product(*every.values())
            if sum(cost for cost, _ in combination) <= spare
        )
        assert within(statistics, afm_dist.Budget(ratio=ratio), methods).error == pytest.approx(best)


def test_the_result_says_of_each_module_what_became_of_it_or_why_not() -> None:
    result = afm_dist.compress(Model(), batches(), target_bytes="6 kB")

    printed = str(result)
    assert f"{result.bytes_before:,} bytes to {result.bytes_after:,}" in printed
    names = {*result.plan.modules, *result.plan.left_alone}
    assert names == {"item", "tags", "body.0", "body.2", "head", "aside"}
    assert all(f"\n  {name}: " in printed for name in names)
    assert "aside" in result.plan.left_alone
    assert "was not measured, or there is none" in result.plan.left_alone["aside"]


def test_targets_and_methods_are_those_that_were_named() -> None:
    result = afm_dist.compress(
        Model(),
        batches(),
        target_ratio=1.3,
        targets=["item", "body.*"],
        methods=[afm_dist.LowRank(rank=1, factors="weighted")],
    )

    assert set(result.plan.modules) <= {"item", "body.0", "body.2"}
    assert {entry.config.label for entry in result.plan.entries} == {"weighted"}


@pytest.mark.parametrize("ratio", [2.0, 3.5, 6.0])
def test_quantised_tables_are_chosen_among_where_the_values_are_known(ratio: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fields = (
        Field(name="site", kind="categorical", cardinality=400),
        Field(name="ad", kind="categorical", cardinality=90),
    )
    model = build_model("deepfm", fields, {"embedding_dim": 8, "hidden": (16,), "dropout": 0.0})
    nn.init.normal_(model.embedding.weight)
    ids = torch.stack([torch.randint(0, size, (2_000,)) for size in (400, 90)], 1)

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch, torch.zeros(len(batch), 0))

    low_rank = afm_dist.compress(
        model, [ids], target_ratio=min(ratio, 2.0), forward_fn=forward, methods=[afm_dist.LowRank(rank=1)]
    )
    methods = [afm_dist.LowRank(rank=1), Quantization(store="int8")]
    any_method = afm_dist.compress(model, [ids], target_ratio=ratio, forward_fn=forward, methods=methods)

    found = {entry.name: entry.config.tag for entry in any_method.plan.entries}
    assert found["embedding"] == "quantization"
    assert any_method.error < low_rank.error
    afm_dist.save_pretrained(any_method.model, str(tmp_path), plan=any_method.plan)
    written = sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    assert written == any_method.bytes_after <= any_method.bytes_before / ratio


def test_the_steps_do_what_the_one_call_does(statistics: afm_dist.Statistics) -> None:
    model = Model()
    plan = afm_dist.plan(statistics, afm_dist.Budget(ratio=2))
    afm_dist.compress_(model, plan, statistics)

    result = afm_dist.compress(Model(), batches(), target_ratio=2)
    assert result.plan == plan
    assert torch.equal(logits(result.model), logits(model))


def test_policies_of_low_rank_plan_from_the_same_statistics(statistics: afm_dist.Statistics) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = afm_dist.plan(statistics, afm_dist.KeptEnergy(share=0.9))
        assert plan == afm_dist.plan_ranks(statistics, afm_dist.KeptEnergy(share=0.9))
    with pytest.raises(OptionError, match="methods are chosen among for a Budget; FixedRank plans low rank"):
        afm_dist.plan(statistics, afm_dist.FixedRank(rank=2), methods=[])


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"size": "1MB"}, r"a budget of 1,000,000 bytes: the model has .* nothing needs to be compressed"),
        ({"ratio": 500}, r"a budget of \d+ bytes: .* is the least that .* can become by compressing item"),
        ({"ratio": 1}, r"Budget\(ratio=1\): must be more than 1"),
        ({"size": "many"}, "'many' is no number of bytes"),
        ({}, 'give either a size, Budget\\("100MB"\\), or a ratio'),
        ({"size": 10, "ratio": 2}, "give either a size"),
    ],
)
def test_budgets_that_cannot_be_are_refused(
    statistics: afm_dist.Statistics, budget: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        afm_dist.plan(statistics, afm_dist.Budget(**budget))


def test_statistics_without_the_shapes_of_a_model_are_refused(statistics: afm_dist.Statistics) -> None:
    with pytest.raises(OptionError, match="a budget needs the shapes of the model"):
        afm_dist.plan(afm_dist.Statistics(dict(statistics)), afm_dist.Budget(ratio=2))


def test_a_model_without_anything_to_compress_is_refused() -> None:
    with pytest.raises(OptionError, match="no module that could be compressed"):
        afm_dist.compress(nn.Sequential(nn.ReLU()), [torch.ones(2, 3)], target_ratio=2)


def test_programs_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}

    for program in programs:
        exec(compile(program, "docs/library.md", "exec"), names)

    assert "times smaller; predicted root mean square change of the logit" in capsys.readouterr().out
    assert (tmp_path / "compressed" / "model.safetensors").exists()
