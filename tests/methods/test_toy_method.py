"""A method without rank and kept energy goes all the way without an edit anywhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.budget import allocate, description_bytes, structure_bytes
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.batch import Batch
from afm_dist.large_tables.codes import CodeParts
from afm_dist.large_tables.ranges import row_groups
from afm_dist.large_tables.table_checkpoint import TableCheckpoint
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.rounding.config import rounding
from afm_dist.report import validated
from afm_dist.report.html import blocks_to_html
from afm_dist.report.markdown import to_markdown
from afm_dist.report.page import document
from afm_dist.report.size_sections import embeddings
from afm_dist.serving.prepare import prepare_for_inference
from afm_dist.stages.report_parts import layers, plan_notes
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.statistics.statistics import Statistics
from tests.methods.toy import Toy, ToyOfTable
from tests.models.small_models import FIELDS, SHAPES, T, inputs, logits, small_model
from tests.report.example import example_report

pytestmark = pytest.mark.usefixtures("with_toy")

LOW = PlanEntry("embedding", LowRank(rank=2, folded_into="mlp.0"))
ALONE = Plan(entries=(PlanEntry("embedding", Toy()),))
STACKED = Plan(entries=(LOW, PlanEntry("embedding", Toy(own=0.5))))


def batch() -> Batch:
    ids, numeric = inputs()
    return Batch(ids, numeric, torch.zeros(len(ids)))


def known() -> Statistics:
    model = small_model("deepfm")
    moments = collect_moments(model, [batch()], ["embedding", "mlp.*"], forward_fn=forward_batch)
    return Statistics(moments, output_sensitivity(model, [batch()], ["embedding"], forward=forward_batch))


def compressed(plan: Plan) -> tuple[torch.nn.Module, ModelConfig]:
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS, plan=plan)
    return compress_(small_model("deepfm"), plan, known()), config


plans = pytest.mark.parametrize("plan", [ALONE, STACKED], ids=["alone", "stacked"])


@plans
def test_a_plan_survives_json(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_codes_are_within_half_a_step_of_the_rows() -> None:
    model, _ = compressed(ALONE)
    for i in range(3):
        error = (model.embedding.codes(i) - small_model("deepfm").embedding.codes(i)).abs().max()
        assert error <= model.embedding.store.step[i] / 2 * (1 + 1e-5)


def test_rare_ids_share_a_slot() -> None:
    model, _ = compressed(STACKED)
    codes = model.embedding.codes(0)
    assert model.embedding.slots == (4, 3, 5)
    assert torch.equal(codes[3:], codes[3].expand(4, 2))
    assert not torch.equal(codes[2], codes[3])


@plans
def test_a_checkpoint_gives_the_same_bits_in_the_bytes_that_were_predicted(
    plan: Plan, tmp_path: Path
) -> None:
    model, config = compressed(plan)

    save_pretrained(model, str(tmp_path), config)

    loaded = from_pretrained(str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.embedding.store.codes.dtype == torch.int8
    before = ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS)
    assert size_on_disk(str(tmp_path)) == structure_bytes(before, plan) + description_bytes(before, plan)


@plans
def test_steps_and_projections_are_trained_and_codes_are_not(plan: Plan) -> None:
    model, _ = compressed(plan)
    codes = model.embedding.store.codes.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model.embedding.store.step.clone()

    ids, numeric = inputs()
    model(ids, numeric).square().mean().backward()
    optimizer.step()

    assert torch.equal(model.embedding.store.codes, codes)
    assert not torch.equal(model.embedding.store.step, before)


@plans
def test_the_form_for_inference_gives_its_logits(plan: Plan) -> None:
    model, _ = compressed(plan)

    torch.testing.assert_close(
        prepare_for_inference(model)(*inputs()), model(*inputs()), rtol=1e-5, atol=1e-5
    )


def test_what_stacks_on_low_rank_sees_the_statistics_of_its_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Statistics] = []
    statistics = known()
    model = compress_(small_model("deepfm"), Plan(entries=(LOW,)), statistics)
    codes = model.embedding.lookup(batch().ids).detach().double()
    monkeypatch.setattr(ToyOfTable, "fill", lambda *given: seen.append(given[-1]))

    compress_(small_model("deepfm"), STACKED, statistics)

    for i, field in enumerate(model.embedding.names):
        own = seen[0][f"embedding[{field}]"]
        torch.testing.assert_close(own.mean, codes[:, i].mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            own.covariance, torch.cov(codes[:, i].T, correction=0), rtol=1e-4, atol=1e-6
        )
        projection = model.embedding.decoder(i).projection.double()
        G = statistics.sensitivity(f"embedding[{field}]", T)
        torch.testing.assert_close(
            seen[0].sensitivity(f"embedding[{field}]", 2), projection.T @ G @ projection
        )


def test_a_budget_chooses_among_its_candidates() -> None:
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS)
    whole = structure_bytes(config, Plan())
    least = structure_bytes(config, Plan(entries=(PlanEntry("embedding", Toy(own=0.25)),)))

    rich, poor = (allocate(config, ALONE, known(), budget) for budget in (whole - 4 * 20 * T // 2, least))

    assert (rich.configs, poor.configs) == ({"embedding": Toy()}, {"embedding": Toy(own=0.25)})
    assert rich.error < poor.error


def test_rounding_goes_on_top_of_its_neighbours() -> None:
    model, _ = compressed(STACKED + rounding("linear"))

    assert torch.equal(model.linear.weight, model.linear.weight.bfloat16().float())


@plans
def test_it_stands_in_reports_by_what_it_says_of_itself(plan: Plan) -> None:
    report = validated({**example_report(), "layers": layers(known(), plan)})

    own = [layer for layer in report["layers"] if layer["method"] == "toy"]
    assert [layer["name"] for layer in own] == [f"embedding[{field}]" for field in ("site", "ad", "hour")]
    assert all("rank" not in layer and set(layer["details"]) == {"Own slots"} for layer in own)
    page, text = blocks_to_html(embeddings(report)), to_markdown(document(report))
    for shown in (page, text):
        assert "Own slots" in shown
    assert plan_notes(plan)[-1] == "embedding has integer codes."


def test_rows_of_a_table_larger_than_memory_stream_through_it(tmp_path: Path) -> None:
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    model = small_model("deepfm")
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS)
    save_pretrained(model, source, config)
    statistics = known()

    encoders = [
        ToyOfTable().row_encoder("embedding", field, Toy(), T, statistics) for field in model.embedding.names
    ]
    parts = CodeParts(
        table=TableCheckpoint.open(source).table,
        encoders=encoders,
        groups=row_groups(model.embedding.cardinalities, 5),
        folder=target,
        fingerprint="toy",
    )
    for part in range(len(parts.groups)):
        parts.make(part)

    written = b"".join(bytes(piece) for piece in parts.pieces())
    rows = torch.frombuffer(bytearray(written), dtype=torch.float32).view(-1, T)
    expected = torch.cat([encoders[i](model.embedding.codes(i).detach()) for i in range(3)])
    assert torch.equal(rows, expected)
