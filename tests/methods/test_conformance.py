"""What every registered method must do, whichever it is: found through the registry, no method by name here.

A method comes in by ``Method.examples``: configs that fit a module, and the one that loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.budget import description_bytes, structure_bytes
from afm_dist.compression.config import MethodConfig
from afm_dist.compression.method import Method
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.registry import facts_of, registered
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.models import build_model
from afm_dist.serving.prepare import prepare_for_inference
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.outputs import has_outputs
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.first_order import LinearTerm
from afm_dist.tables.fused import FusedEmbedding
from tests.methods import toy
from tests.models.small_models import FIELDS, SHAPES, inputs, small_model

# The toy is held to the rules of those that ship.
toy.register()


class Words(nn.Module):
    """A model of a user's own: a table, a table of bags, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items, self.bags = nn.Embedding(40, 6, padding_idx=3), nn.EmbeddingBag(30, 6, mode="sum")
        self.hidden, self.out = nn.Linear(12, 10), nn.Linear(10, 1)

    def forward(self, batch: Batch) -> Tensor:
        ids = batch.ids
        both = torch.cat([self.items(ids[:, 0]), self.bags(ids[:, 1:])], 1)
        return self.out(torch.relu(self.hidden(both))).squeeze(1)


def words() -> Words:
    return Words().eval()


def words_batch() -> Batch:
    ids = torch.randint(0, 30, (400, 4), generator=torch.Generator().manual_seed(1))
    return Batch(ids, torch.zeros(400, 0), torch.zeros(400))


def deepfm() -> nn.Module:
    return small_model("deepfm")


def deepfm_batch() -> Batch:
    ids, numeric = inputs(400)
    return Batch(ids, numeric, torch.zeros(400))


# Of each type of module: a model that has one, its name there, and rows.
Place = tuple[Callable[[], nn.Module], str, Callable[[], Batch]]
PLACES: dict[type[nn.Module], Place] = {
    nn.Linear: (words, "hidden", words_batch),
    nn.Embedding: (words, "items", words_batch),
    nn.EmbeddingBag: (words, "bags", words_batch),
    FusedEmbedding: (deepfm, "embedding", deepfm_batch),
    LinearTerm: (deepfm, "linear", deepfm_batch),
    nn.Module: (words, "items", words_batch),
}


def score(model: nn.Module, batch: Batch) -> Tensor:
    result: Tensor = model(batch) if isinstance(model, Words) else model(batch.ids, batch.numeric)
    return result


def known(place: Place) -> Statistics:
    build, name, rows = place
    model, batch = build(), rows()
    if not has_outputs(model.get_submodule(name)):
        return Statistics({})
    moments = collect_moments(model, [batch], [name], forward_fn=score)
    return Statistics(moments, output_sensitivity(model, [batch], [name], forward=score))


def cases() -> Iterator[Any]:
    for (kind, module_type), method in registered().items():
        place = PLACES[module_type]
        module = place[0]().get_submodule(place[1])
        for i, config in enumerate(method.examples(module)):
            assert type(config) is kind
            yield pytest.param(method, config, place, id=f"{kind.tag}-{module_type.__name__}-{i}")


every_method = pytest.mark.parametrize(("method", "config", "place"), list(cases()))


def plan_of(config: MethodConfig, place: Place) -> Plan:
    return Plan(entries=(PlanEntry(place[1], config),))


def compressed(config: MethodConfig, place: Place) -> nn.Module:
    return compress_(place[0](), plan_of(config, place), known(place)).eval()


def test_every_method_has_examples() -> None:
    for (_, module_type), method in registered().items():
        build, name, _ = PLACES[module_type]
        assert method.examples(build().get_submodule(name)), method


@every_method
def test_a_plan_goes_round_by_json(method: Method[Any, Any], config: MethodConfig, place: Place) -> None:
    plan = plan_of(config, place)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert config.label and config.in_words
    assert all(isinstance(text, str) for pair in config.details().items() for text in pair)


@every_method
def test_a_checkpoint_has_the_same_bits(
    method: Method[Any, Any], config: MethodConfig, place: Place, tmp_path: Path
) -> None:
    build, _, rows = place
    model, plan = compressed(config, place), plan_of(config, place)
    own = (
        None
        if isinstance(model, Words)
        else ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS, plan=plan)
    )

    save_pretrained(model, str(tmp_path), own, plan=None if own else plan)
    loaded = from_pretrained(str(tmp_path), model=build() if own is None else None)

    with torch.no_grad():
        assert torch.equal(score(loaded, rows()), score(model, rows()))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@every_method
def test_all_or_nothing(method: Method[Any, Any], config: MethodConfig, place: Place) -> None:
    build, _, rows = place
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = plan_of(config, place) + plan_of(config, (build, "not.there", rows))

    for apply in (lambda: compress_(model, plan, known(place)), lambda: restructure_(model, plan)):
        with pytest.raises(OptionError, match=r"not\.there"):
            apply()
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_method
def test_what_is_lossless_reproduces_the_logits(
    method: Method[Any, Any], config: MethodConfig, place: Place
) -> None:
    build, name, rows = place
    lossless = method.lossless(build().get_submodule(name))
    if lossless is None:
        pytest.skip("the method always loses something")
    with torch.no_grad():
        before, after = score(build(), rows()), score(compressed(lossless, place), rows())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@every_method
def test_bytes_predicted_are_bytes_written(
    method: Method[Any, Any], config: MethodConfig, place: Place, tmp_path: Path
) -> None:
    if place[0] is not deepfm:
        pytest.skip("bytes are predicted of our architectures")
    before = ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS)
    plan = plan_of(config, place)

    save_pretrained(
        compressed(config, place),
        str(tmp_path),
        ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS, plan=plan),
    )

    assert size_on_disk(str(tmp_path)) == structure_bytes(before, plan) + description_bytes(before, plan)


@every_method
def test_gradients_reach_what_is_trained(
    method: Method[Any, Any], config: MethodConfig, place: Place
) -> None:
    model = compressed(config, place)
    if not any(p.requires_grad for p in model.get_submodule(place[1]).parameters()):
        pytest.skip("nothing of it is trained: its numbers are too small for an optimizer's steps")
    score(model, place[2]()).square().mean().backward()
    trained = [p for _, p in model.get_submodule(place[1]).named_parameters() if p.requires_grad]
    assert trained and any(p.grad is not None and float(p.grad.to_dense().abs().sum()) > 0 for p in trained)


@every_method
def test_our_models_are_served_with_the_same_logits(
    method: Method[Any, Any], config: MethodConfig, place: Place
) -> None:
    if place[0] is not deepfm:
        pytest.skip("the form for inference is of our architectures")
    model, batch = compressed(config, place), place[2]()
    with torch.no_grad():
        torch.testing.assert_close(
            prepare_for_inference(model)(batch.ids, batch.numeric), score(model, batch), rtol=1e-4, atol=1e-5
        )


@every_method
def test_reports_get_plain_facts(method: Method[Any, Any], config: MethodConfig, place: Place) -> None:
    facts, statistics = facts_of(type(config)), known(place)
    for key in statistics:
        json.dumps(facts.layer(key, config, statistics), allow_nan=False)
        share = facts.kept_share(key, config, statistics)
        assert share is None or 0 <= share <= 1
    assert all(isinstance(note, str) for note in facts.notes(plan_of(config, place).entries))


@every_method
def test_a_module_of_a_type_it_does_not_take_is_refused_by_name(
    method: Method[Any, Any], config: MethodConfig, place: Place
) -> None:
    if not method.replaces:
        pytest.skip("it goes by values, not by types")
    model = nn.ModuleDict({"odd": nn.LayerNorm(4)})
    with pytest.raises(OptionError, match=r"odd is a LayerNorm, which cannot be compressed by"):
        compress_(model, Plan(entries=(PlanEntry("odd", config),)), {})


def test_every_architecture_builds_what_its_table_is_compressed_to() -> None:
    for name in SHAPES:
        with torch.device("meta"):
            for (_, module_type), method in registered().items():
                if module_type is FusedEmbedding:
                    model = build_model(name, FIELDS, SHAPES[name])
                    (first, *_) = method.examples(model.get_submodule("embedding"))
                    restructure_(model, Plan(entries=(PlanEntry("embedding", first),)))
