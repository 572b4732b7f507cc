"""One call for moments and sensitivity: on Ray and here, the bits of the calls that measure each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.models import build_model
from afm_dist.statistics.collect import PassOptions, collect_moments, collect_statistics
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import digest_of
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.partial_sensitivity import as_moments, split
from afm_dist.statistics.sample import Sample
from afm_dist.statistics.sensitivity import SensitivityTerms, output_sensitivity
from tests.small_dataset import FIELDS

MODULES = ["embedding", "mlp.0", "mlp.3"]


def deepfm() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (12, 10), "dropout": 0.5})
    nn.init.normal_(model.embedding.weight, std=0.5)
    return model


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def sensitivities(statistics: Any) -> dict[str, Tensor]:
    return {key: statistics.measured_sensitivity(key) for key in statistics}


# On Ray ------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize("max_groups", [1, 2, 256])
def test_a_pass_has_the_bits_of_moments_and_sensitivity_each_alone(
    local_ray: None, dataset: Manifest, max_groups: int
) -> None:
    settings = PassOptions(batch_size=64, max_groups=max_groups)

    found = collect_statistics(deepfm(), dataset, MODULES, settings=settings)

    alone = collect_moments(deepfm(), dataset, MODULES, batch_size=64, max_groups=max_groups)
    assert digest_of(dict(found)) == digest_of(alone)
    rows = Sample.of(dataset).read(dataset, dataset.shards("train"))
    assert same(sensitivities(found), output_sensitivity(deepfm(), rows, MODULES, forward=forward_batch))


@pytest.mark.ray
def test_a_pass_that_was_interrupted_goes_on_with_what_was_committed(
    local_ray: None, dataset: Manifest, tmp_path: Path
) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    settings = PassOptions(
        folder=str(tmp_path / "pass"), keep=True, emit=lambda what, /, **about: events.append((what, about))
    )
    whole = collect_statistics(deepfm(), dataset, MODULES, settings=settings)
    (folder,) = (tmp_path / "pass").iterdir()
    sorted(folder.glob("group-*"))[1].unlink()

    again = collect_statistics(deepfm(), dataset, MODULES, settings=settings)

    assert same(sensitivities(again), sensitivities(whole))
    assert digest_of(dict(again)) == digest_of(dict(whole))
    assert [about["group"] for what, about in events if what == "group committed"][-1:] == [1]
    assert ("groups found committed") in [what for what, _ in events]


@pytest.mark.ray
def test_partials_without_the_sensitivity_are_not_taken_for_those_with_it(
    local_ray: None, dataset: Manifest, tmp_path: Path
) -> None:
    collect_moments(deepfm(), dataset, MODULES, folder=str(tmp_path), keep=True)

    found = collect_statistics(deepfm(), dataset, MODULES, settings=PassOptions(folder=str(tmp_path)))

    assert sensitivities(found)["mlp.3"] is not None


@pytest.mark.ray
def test_a_forward_without_logits_is_refused_on_workers_too(local_ray: None, dataset: Manifest) -> None:
    with pytest.raises(OptionError, match="the sensitivity needs logits, but the forward gave a dict"):
        collect_statistics(
            deepfm(),
            dataset,
            MODULES,
            forward_fn=lambda model, batch: {"logit": model(batch.ids, batch.numeric)},
        )


# Terms in partials ---------------------------------------------------------------------------------


def terms(seed: int, count: int = 5) -> list[SensitivityTerms]:
    generator = torch.Generator().manual_seed(seed)
    products = [torch.randn(3, 3, dtype=torch.float64, generator=generator) for _ in range(count)]
    return [
        SensitivityTerms(products={"a": one, "b[c d]": -one}, logits=7, reached={"a"}) for one in products
    ]


def summed(every: list[SensitivityTerms]) -> SensitivityTerms:
    total = SensitivityTerms()
    for term in every:
        total.add(term)
    return total


def test_terms_of_groups_add_up_as_those_of_one_process() -> None:
    groups = [terms(1), terms(2), [], terms(3)]
    own = {"a": Moments.empty(3)}
    parts = [own | as_moments(group, joined=i == 0) for i, group in enumerate(groups)]

    total = SensitivityTerms()
    for part in parts:
        moments, found = split(part)
        assert moments.keys() == own.keys()
        for term in found:
            total.add(term)

    expected = summed([term for group in groups for term in group])
    assert same(total.products, expected.products)
    assert (total.logits, total.reached) == (expected.logits, expected.reached) == (105, {"a"})
    # What is summed within a later group first has other bits, so it may not be.
    joined = summed([summed(group) for group in groups])
    assert not same(joined.products, expected.products)


# Here ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5))
        self.head = nn.Linear(5, 1)
        self.aside = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        return self.head(self.body(x)).squeeze(1)


def batches(count: int = 3, rows: int = 50) -> list[Tensor]:
    return [torch.randn(rows, 6, generator=torch.Generator().manual_seed(i)) for i in range(count)]


LAYERS = ["body.0", "body.3"]


def test_batches_are_gone_through_once_with_the_bits_of_each_alone() -> None:
    found = collect_statistics(Net(), iter(batches()), LAYERS)

    assert digest_of(dict(found)) == digest_of(collect_moments(Net(), batches(), LAYERS))
    alone = output_sensitivity(Net(), batches(), LAYERS, forward=lambda model, x: model(x))
    assert same(sensitivities(found), alone)


def test_the_sensitivity_is_of_a_sample_of_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_dist.statistics.collect.SAMPLE_ROWS", 80)

    found = collect_statistics(Net(), batches(5), LAYERS)

    alone = output_sensitivity(Net(), batches(2), LAYERS, forward=lambda model, x: model(x))
    assert same(sensitivities(found), alone)
    assert found["body.0"].count == 250


@pytest.mark.parametrize(
    ("methods", "measured"),
    [
        (None, True),
        ([], False),
        ([LowRank(rank=2)], False),
        ([LowRank(rank=2), LowRank(rank=2, factors="weighted")], True),
    ],
)
def test_the_sensitivity_is_measured_where_a_method_needs_it(
    methods: list[LowRank] | None, measured: bool
) -> None:
    found = collect_statistics(Net(), batches(), LAYERS, methods=methods)

    assert (found.measured_sensitivity("body.0") is not None) is measured


def test_a_module_that_no_logit_depends_on_has_no_sensitivity_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = collect_statistics(Net(), batches(), ["aside", "body.3"])

    assert found.measured_sensitivity("aside") is None
    assert found.measured_sensitivity("body.3") is not None
    assert found["aside"].count == 150
    assert "no sensitivity of aside: no logit depends on" in " ".join(capsys.readouterr().err.split())


def test_a_forward_without_logits_is_refused_unless_no_method_needs_them() -> None:
    def forward(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return {"logit": model(batch)}

    with pytest.raises(OptionError, match="the forward gave a dict: let forward_fn return the logits"):
        collect_statistics(Net(), batches(), LAYERS, forward_fn=forward)
    assert collect_statistics(Net(), batches(), LAYERS, forward_fn=forward, methods=[])["body.0"].count == 150


def test_broken_values_are_an_error_that_names_the_batch() -> None:
    broken = [*batches(2), torch.full((4, 6), float("nan"))]

    with pytest.raises(DataError, match="batch 2: "):
        collect_statistics(Net(), broken, LAYERS)


def test_the_model_is_left_as_it_was() -> None:
    model = Net().train()

    collect_statistics(model, batches(), LAYERS)

    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_compress_takes_what_was_collected() -> None:
    model = Net()
    statistics = collect_statistics(model, batches(), LAYERS)
    plan = Plan(entries=tuple(PlanEntry(name, LowRank(rank=1, factors="weighted")) for name in LAYERS))

    compress_(model, plan, statistics)

    assert type(model.body[0]) is not nn.Linear
