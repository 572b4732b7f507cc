"""The form for inference: the model's logits, whatever was compressed, and nothing else of the model."""

from __future__ import annotations

import copy
import pickle
from typing import Literal, get_args

import pytest
import torch
from torch import nn

from afm_dist import prepare_for_inference
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.manifest import Field
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.models.base import CTRModel
from afm_dist.serving import prepare
from afm_dist.serving.rows import Precision
from tests.models.small_models import FIELDS, FOLDABLE, MODELS, NO_NUMBERS, STARTS, inputs, small_model

Compression = Literal[
    "none",
    "mlp",
    "emb",
    "folded",
    "absorbed",
    "absorbed and folded",
    "ranks",
    "ranks folded and absorbed",
    "ranks 0",
    "readers",
    "readers, tables as they are",
]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)

RANKS: dict[str, dict[str, int]] = {
    "ranks": {"site": 2, "ad": 0, "hour": 1},
    "ranks folded and absorbed": {"site": 2, "ad": 0, "hour": 1},
    "ranks 0": {"site": 0, "ad": 0, "hour": 0},
}

CASES = [(name, how) for name in MODELS for how in COMPRESSIONS if name in FOLDABLE or "folded" not in how]

every_model = pytest.mark.parametrize("name", MODELS)
every_case = pytest.mark.parametrize(("name", "compression"), CASES)
every_precision = pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])


def compressed(name: str, compression: Compression, fields: tuple[Field, ...] = FIELDS) -> CTRModel:
    """A model with random weights, in the structure that the compression leads to."""
    assert compression in COMPRESSIONS
    model = small_model(name, fields)
    activations = ("shifted", "plain", "none")
    layers = [
        PlanEntry(layer, LowRank(factors="afm", rank=3, activation=activation))
        for layer, activation in zip(model.compressible_linears, activations, strict=False)
    ]
    if compression == "none":
        return model
    if "readers" in compression:
        layers += [
            PlanEntry(layer, LowRank(factors="afm", rank=1, activation="none")) for layer in readers(model)
        ]
    if compression not in ("mlp", "readers, tables as they are"):
        layers.append(
            PlanEntry(
                "embedding",
                LowRank(
                    factors="afm",
                    rank=0 if compression == "ranks 0" else 2,
                    ranks=RANKS.get(compression),
                    folded_into="mlp.0" if "folded" in compression else None,
                    absorbs="linear" if "absorbed" in compression else None,
                ),
            )
        )
    restructure_(model, Plan(entries=tuple(layers)))
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.1, 0.4)
    return model.eval()


def readers(model: CTRModel) -> list[str]:
    """The linear layers that read the embeddings: nobody's default, and everybody's right."""
    crosses = ("cross.0.linear", "cross_output")
    names = dict(model.named_modules())
    return [name for name in ("mlp.0", *crosses) if name in names]


@every_case
@pytest.mark.parametrize("fields", [FIELDS, NO_NUMBERS], ids=["numbers", "no numbers"])
@torch.inference_mode()
def test_logits_are_the_models(name: str, compression: Compression, fields: tuple[Field, ...]) -> None:
    model = compressed(name, compression, fields)
    ids, numeric = inputs(300, fields)
    expected = model(ids, numeric)
    assert expected.std() > 0.05
    torch.testing.assert_close(prepare_for_inference(model)(ids, numeric), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_large_batch_is_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_for_inference(compressed("deepfm", "emb"))
    ids, numeric = inputs(300)
    whole = prepared(ids, numeric)
    monkeypatch.setattr(prepare, "_BLOCK", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    rows: list[int] = []
    prepared.scorer.register_forward_hook(lambda scorer, given, logits: rows.append(len(logits)))
    torch.testing.assert_close(prepared(ids, numeric), whole)
    assert sum(rows) == 300 and max(rows) == 7 * 2
    with pytest.raises(ValueError, match="ids of 300 rows and numbers of 299"):
        prepared(ids, numeric[1:])


@every_model
@every_precision
@torch.inference_mode()
def test_batches_of_one_and_of_none(name: str, precision: Precision) -> None:
    prepared = prepare_for_inference(compressed(name, "emb"), precision=precision)
    ids, numeric = inputs(3)
    torch.testing.assert_close(prepared(ids[1:2], numeric[1:2]), prepared(ids, numeric)[1:2])
    assert prepared(ids[:0], numeric[:0]).shape == (0,)


@every_precision
@pytest.mark.parametrize("compression", ["emb", "ranks", "ranks 0", "ranks folded and absorbed"])
def test_an_id_outside_its_field_is_named(precision: Precision, compression: Compression) -> None:
    prepared = prepare_for_inference(compressed("deepfm", compression), precision=precision)
    ids, numeric = inputs(3)
    for wrong in (-1, 4):  # 4 would be the first row of the next field
        ids[1, 1] = wrong
        with pytest.raises(ValueError, match=f"id {wrong} in row 1 of field 'ad' lies outside .* 4 rows"):
            prepared(ids, numeric)
    with pytest.raises(ValueError, match=r"ids of shape \(3, 2\): expected \(B, 3\)"):
        prepared(ids[:, :2], numeric)


def test_a_copy_scores_with_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "compiled", lambda scorer: lambda ids, numeric: scorer(ids, numeric))
    prepared = prepare_for_inference(compressed("deepfm", "emb"), compile=True)
    ids, numeric = inputs(5)
    expected = prepared(ids, numeric)

    own, packed = copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))
    for parameter in (*prepared.parameters(), *prepared.buffers()):
        parameter.data.zero_()

    torch.testing.assert_close(own(ids, numeric), expected)
    torch.testing.assert_close(packed(ids, numeric), expected)
    assert (prepared(ids, numeric) == 0).all()


def test_it_stays_in_eval_mode() -> None:
    model = small_model("deepfm", dropout=0.9)
    ids, numeric = inputs(30)
    prepared = prepare_for_inference(model)

    nn.ModuleDict({"serving": prepared}).train()

    assert not any(module.training for module in prepared.modules())
    torch.testing.assert_close(prepared(ids, numeric), model(ids, numeric).detach())


def test_the_model_stays_as_it_was_and_shares_nothing() -> None:
    model = compressed("dcn", "emb").train()
    model.mlp[3].requires_grad_(False)
    before = copy.deepcopy(model)
    prepared = prepare_for_inference(model, precision="int8")
    with torch.no_grad():
        for tensor in (*prepared.buffers(), *prepared.parameters()):
            tensor.zero_()
    assert model.training and not prepared.training
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(new, old, msg=name)
        assert new.requires_grad == old.requires_grad
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


@pytest.mark.parametrize("compression", ["none", "emb", "absorbed"])
@torch.inference_mode()
def test_rows_are_off_by_no_more_than_their_precision_says(compression: Compression) -> None:
    model = compressed("deepfm", compression)
    ids, _ = inputs(300)
    (exact, weights), (rows, row_weights), (bytes_, byte_weights) = (
        prepare_for_inference(model, precision=precision).scorer.table.groups[0](ids + torch.tensor(STARTS))
        for precision in ("float32", "bfloat16", "int8")
    )
    assert ((rows - exact).abs() <= exact.abs() / 2**8).all()
    table = model.embedding
    largest = torch.stack([table.weight[table.rows(i)].abs().max() for i in range(3)])
    own = exact.abs().amax(2, keepdim=True)
    assert ((bytes_ - exact).abs() <= (own + largest[:, None] / 255) / 254 + 1e-7).all()
    assert (bytes_ != exact).any() and (rows != exact).any()
    if weights is None:
        assert row_weights is None and byte_weights is None
        return
    largest = torch.stack([model.linear.weight[table.rows(i)].abs().max() for i in range(3)])
    assert ((row_weights - weights).abs() <= weights.abs() / 2**8).all()
    assert ((byte_weights - weights).abs() <= largest / 65534 + 1e-7).all()


@every_model
@torch.inference_mode()
def test_lower_precision_moves_the_logits_little_and_takes_less_memory(name: str) -> None:
    model = compressed(name, "none")
    ids, numeric = inputs(300)
    expected = model(ids, numeric)
    scale = expected.std()
    exact = prepare_for_inference(model)
    for precision, size in (("bfloat16", 10), ("int8", 4 + 3)):
        prepared = prepare_for_inference(model, precision=precision)
        assert prepared.scorer.table.groups[0].table.nbytes == 20 * size
        error = (prepared(ids, numeric) - expected).abs().max() / scale
        assert 1e-6 < error < 0.05, precision
    assert exact.scorer.table.groups[0].table.nbytes == 20 * 4 * 5


@torch.inference_mode()
def test_fields_without_codes_have_two_bytes_an_id_in_int8() -> None:
    model = compressed("deepfm", "ranks 0")
    ids, numeric = inputs(300)
    prepared = prepare_for_inference(model, precision="int8")
    assert prepared.scorer.table.groups[0].table.nbytes == 20 * 2
    torch.testing.assert_close(prepared(ids, numeric), model(ids, numeric), rtol=0, atol=1e-3)


def test_a_table_of_zeros_has_an_exact_int8_form() -> None:
    model = compressed("deepfm", "none")
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.linear.weight.zero_()
    torch.testing.assert_close(prepare_for_inference(model, precision="int8")(*inputs()), model(*inputs()))


def test_what_int8_cannot_hold_is_refused() -> None:
    model = compressed("deepfm", "none")
    with torch.no_grad():
        model.embedding.weight[8, 1] = float("nan")
    with pytest.raises(OptionError, match=r"precision int8: .* not finite"):
        prepare_for_inference(model, precision="int8")


def test_other_models_and_precisions_are_refused() -> None:
    with pytest.raises(OptionError, match="a Linear has no form for inference"):
        prepare_for_inference(nn.Linear(2, 2))
    with pytest.raises(OptionError, match="precision 'int4': choose from float32, bfloat16, int8"):
        prepare_for_inference(small_model("deepfm"), precision="int4")


@torch.inference_mode()
def test_can_be_exported_with_a_dynamic_batch_and_never_reads_another_fields_row() -> None:
    prepared = prepare_for_inference(compressed("deepfm", "emb"), precision="int8")
    batch = torch.export.Dim("batch")
    program = torch.export.export(prepared, inputs(4), dynamic_shapes=({0: batch}, {0: batch})).module()
    for rows in (1, 7):
        torch.testing.assert_close(program(*inputs(rows)), prepared(*inputs(rows)))
    ids, numeric = inputs(4)
    ids[1, 1] = 4
    with pytest.raises(IndexError, match="index out of range"):
        program(ids, numeric)
