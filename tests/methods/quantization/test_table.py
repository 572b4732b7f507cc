from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.budget import allocate, description_bytes, structure_bytes
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_, compress_carrying_
from afm_dist.errors import OptionError
from afm_dist.export import export
from afm_dist.export.export import written_bytes
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.quantization.config import Quantization
from afm_dist.methods.quantization.fields import KnownRows, change_of_logit
from afm_dist.modules.tensors import named_tensors
from afm_dist.serving.prepare import prepare_for_inference
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.statistics import Statistics
from tests.methods.quantization.tables import (
    ABSORBING,
    LOW,
    ROWS,
    T,
    batch,
    config,
    counts,
    known,
    logits,
    model,
    plan,
    quantised_model,
)

MIXED = Quantization(store="vq4", fields={"item": "int4-row", "user": "rq2x3@200", "hour": "float16"})
PLANS = {
    **{word: plan(Quantization(store=word)) for word in ("int8", "int2", "vq5", "rq2x3", "pq2x3", "mean")},
    "mixed": plan(MIXED),
    "on low rank": plan(MIXED, LOW),
    "both": plan(MIXED, PlanEntry("linear", Quantization(store="vq3", fields={"user": "int4:99+mean"}))),
    "with first-order weights": plan(Quantization(store="vq6", fields={"user": "vq4@500"}), ABSORBING),
    "on ranks by field": Plan(
        entries=(
            PlanEntry("embedding", LowRank(rank=1).with_rank({"item": 2, "user": 3, "hour": 0, "one": 2})),
            PlanEntry("embedding.groups.2", Quantization(store="vq5")),
            PlanEntry("embedding.groups.3", Quantization(store="int4")),
        )
    ),
}
plans = pytest.mark.parametrize("name", PLANS)


@plans
def test_a_checkpoint_has_the_bytes_that_were_predicted_and_the_same_bits(name: str, tmp_path: Path) -> None:
    what = PLANS[name]
    of = quantised_model(what)

    save_pretrained(of, str(tmp_path), config(what))

    assert size_on_disk(str(tmp_path)) == structure_bytes(config(), what) + description_bytes(config(), what)
    loaded = from_pretrained(str(tmp_path))
    assert torch.equal(logits(loaded), logits(of))
    for key, tensor in named_tensors(loaded).items():
        assert torch.equal(tensor, named_tensors(of)[key]), key


def _held(key: str) -> bool:
    return "store" in key or "table.first_order" in key


@plans
def test_the_form_for_inference_has_the_logits_and_the_bytes_of_the_file(name: str, tmp_path: Path) -> None:
    what = PLANS[name]
    of = quantised_model(what)
    save_pretrained(of, str(tmp_path), config(what))

    served = prepare_for_inference(of)

    torch.testing.assert_close(logits(served), logits(of), rtol=1e-5, atol=1e-5)
    held = sum(tensor.nbytes for key, tensor in served.state_dict().items() if _held(key))
    stored = {
        key: tensor.numel() * (2 if tensor.is_floating_point() and "float32" not in key else tensor.itemsize)
        for key, tensor in named_tensors(of).items()
        if "store" in key
    }
    assert held == sum(stored.values())


@pytest.mark.parametrize("name", ["mixed", "with first-order weights", "on ranks by field", "pq2x3"])
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_exported_files_have_the_same_logits_and_packed_codes(name: str, format: str, tmp_path: Path) -> None:
    of = quantised_model(PLANS[name])
    location = str(tmp_path / ("model.onnx" if format == "onnx" else "model.pt2"))

    parity = export(of, config(PLANS[name]), format, location)

    assert parity.difference <= 1e-5
    if format == "onnx":
        import onnx

        weights = onnx.load(location).graph.initializer
        codes = [one for one in weights if one.data_type == onnx.TensorProto.UINT8]
        planes = sum(t.nbytes for key, t in named_tensors(of).items() if key.endswith("planes"))
        assert sum(len(one.raw_data) for one in codes) == planes
        assert {node.domain for node in onnx.load(location).graph.node} == {""}
    assert written_bytes(location) > 0


def test_a_plan_goes_round_by_json() -> None:
    what = PLANS["with first-order weights"]
    assert Plan.from_json(json.loads(json.dumps(what.to_json()))) == what
    assert (
        MIXED.in_words == "by field (float16 for hour; int4-row for item; rq2x3@200 for user; vq4 for others)"
    )


def test_eight_bits_change_little_and_fewer_change_more() -> None:
    of = model()
    changes = []
    for word in ("int8", "int4", "int2"):
        changes.append(
            float((logits(quantised_model(plan(Quantization(store=word)))) - logits(of)).square().mean())
        )
    assert changes[0] < 1e-4
    assert changes == sorted(changes)


def test_ids_behind_the_threshold_share_a_row() -> None:
    of = quantised_model(plan(Quantization(store="vq4@50")))
    codes = of.embedding.codes(1)
    assert torch.equal(codes[50:], codes[50].expand(len(codes) - 50, T))
    assert len(codes[:50].unique(dim=0)) > 4


def test_the_mean_is_that_of_the_log() -> None:
    of, before = quantised_model(plan(Quantization(store="mean"))), model()
    for i, field in enumerate(ROWS):
        own = counts()[field].double()
        mean = own @ before.embedding.codes(i).detach().double() / own.sum()
        torch.testing.assert_close(of.embedding.codes(i)[0].double(), mean, rtol=1e-3, atol=1e-3)


def test_what_saves_nothing_is_left_alone_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    of, before = quantised_model(plan(Quantization(store="int8"))), model()
    assert torch.equal(of.embedding.codes(3), before.embedding.codes(3))
    assert "embedding: one stay float32" in "".join(capsys.readouterr())


def test_rows_that_are_not_finite_are_refused_by_id() -> None:
    of = model()
    statistics = known(of)
    with torch.no_grad():
        of.embedding.weight[300 + 17, 2] = torch.nan
    with pytest.raises(OptionError, match=r"embedding\[user\]: the row of id 17 holds NaN or infinity"):
        compress_(of, plan(Quantization(store="vq4")), statistics)
    assert of.embedding.store is None


def test_a_missing_sensitivity_is_named_unless_none_is_needed() -> None:
    with pytest.raises(OptionError, match=r"embedding\[item\].*output_sensitivity.*metric='plain'"):
        compress_(model(), plan(Quantization(store="vq4")), Statistics(dict(known())))
    compress_(model(), plan(Quantization(store="vq4", metric="plain")), Statistics(dict(known())))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"store": "vq99"}, "'vq99' is no way to store rows"),
        ({"store": "vq4", "fields": {"item": "int5"}}, "'int5' is no way"),
        ({"store": "vq4", "metric": "other"}, "metric 'other': choose from logit, plain"),
        ({"store": "vq4", "seed": -1}, "seed -1"),
    ],
)
def test_configs_are_checked(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Quantization(**wrong)  # type: ignore[arg-type]


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(OptionError, match="the table has no field 'shop'; its fields: item, user, hour, one"):
        quantised_model(plan(Quantization(store="vq4", fields={"shop": "vq2"})))


def test_a_table_is_quantised_once() -> None:
    twice = plan(Quantization(store="vq4")) + plan(Quantization(store="int8"))
    with pytest.raises(OptionError, match="stored in another way already"):
        quantised_model(twice)


@pytest.mark.parametrize("before", [None, LOW, ABSORBING])
@pytest.mark.parametrize("by_field", [False, True])
def test_a_budget_gets_the_bytes_and_the_error_that_were_predicted(
    before: PlanEntry | None, by_field: bool
) -> None:
    first = Plan() if before is None else Plan(entries=(before,))
    of = model()
    statistics = compress_carrying_(of, first, known(of, absorbing=before is ABSORBING))
    now = structure_bytes(config(), first)
    plain = of.embedding.weight.nbytes
    budget = now - plain + plain // 16

    chosen = allocate(
        config(first), plan(Quantization(store="vq4")), statistics, budget, by_field=by_field, model=of
    )

    rows = [
        KnownRows.of(field_key("embedding", field), of.embedding.codes(i), statistics)
        for i, field in enumerate(ROWS)
    ]
    assert chosen.bytes <= budget
    assert chosen.bytes == structure_bytes(config(), first + chosen.plan)
    compress_(of, chosen.plan, statistics)
    found = sum(change_of_logit(own, of.embedding.codes(i).detach()) for i, own in enumerate(rows))
    assert found == pytest.approx(chosen.error, rel=1e-6)


def test_fields_that_choose_for_themselves_lose_less() -> None:
    of, statistics = model(), known()
    plain = of.embedding.weight.nbytes
    budget = structure_bytes(config(), Plan()) - plain + plain // 16
    each, all_alike = (
        allocate(config(), plan(Quantization(store="vq4")), statistics, budget, by_field=by_field, model=of)
        for by_field in (True, False)
    )
    assert each.error < 0.8 * all_alike.error


def test_a_budget_needs_the_values_of_the_model() -> None:
    with pytest.raises(OptionError, match="give allocate the model with its values"):
        allocate(config(), plan(Quantization(store="vq4")), known(), 10_000)


def test_a_budget_below_the_least_says_what_that_is() -> None:
    least = structure_bytes(config(), plan(Quantization(store="mean")))
    with pytest.raises(OptionError, match=f"{least:,} is the least this model can become"):
        allocate(config(), plan(Quantization(store="vq4")), known(), least - 1, model=model())
    found = allocate(config(), plan(Quantization(store="vq4")), known(), least, model=model())
    assert found.configs == {"embedding": Quantization(store="mean")}


@pytest.mark.parametrize("name", ["mixed", "with first-order weights"])
def test_fine_tuning_trains_levels_and_leaves_codes(name: str) -> None:
    from afm_dist.training.optimizer import SplitOptimizer

    of = quantised_model(PLANS[name])
    before = {key: tensor.clone() for key, tensor in named_tensors(of).items()}
    optimizer = SplitOptimizer(of.train(), 1e-2, 0.0)

    for _ in range(3):
        optimizer.zero_grad()
        own = batch()
        of(own.ids, own.numeric).square().mean().backward()
        optimizer.step()

    for key, tensor in named_tensors(of).items():
        if "store" in key:
            moved = not torch.equal(tensor, before[key])
            # A grid's step is as small as a step of an optimizer: it would be lost in one.
            grid = ".int" in key
            assert moved == (tensor.is_floating_point() and not grid), key
    assert logits(of.eval()).square().mean() < logits(quantised_model(PLANS[name])).square().mean()


def test_a_model_in_float64_stays_one() -> None:
    of = model().double()
    compress_(of, plan(MIXED), known(model()))
    own = batch()
    assert of(own.ids, own.numeric.double()).dtype == torch.float64


def test_the_form_for_inference_is_compiled() -> None:
    of = quantised_model(PLANS["with first-order weights"])
    served = prepare_for_inference(of, compile=True)
    torch.testing.assert_close(logits(served), logits(of), rtol=1e-5, atol=1e-5)
    own = batch()
    own.ids[3, 1] = 801
    with pytest.raises(ValueError, match="id 801 in row 3 of field 'user'"):
        served(own.ids, own.numeric)


def test_frequent_first_order_weights_are_finer() -> None:
    of = quantised_model(Plan(entries=(PlanEntry("linear", Quantization(store="vq3")),)))
    left = (of.linear.rows(1) - model().linear.rows(1)).square()
    assert left[:20].mean() < 0.5 * left[200:].mean()


def test_first_order_weights_share_no_rows() -> None:
    with pytest.raises(OptionError, match="linear: its rare ids share no row; in place of @N"):
        quantised_model(Plan(entries=(PlanEntry("linear", Quantization(store="vq3@9")),)))


def test_codes_do_not_depend_on_threads() -> None:
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(named_tensors(quantised_model(PLANS["mixed"])))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items() if "store" in key)
