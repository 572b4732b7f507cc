"""What holds for every architecture."""

from __future__ import annotations

import math
import re

import pytest
import torch

from afm_dist.dataset.manifest import Field
from afm_dist.errors import OptionError
from afm_dist.models import build_model
from tests.models.small_models import FIELDS, MODELS, NO_NUMBERS, SHAPES, inputs, logits, small_model

every_model = pytest.mark.parametrize("name", MODELS)


@every_model
@pytest.mark.parametrize("fields", [FIELDS, NO_NUMBERS], ids=["numbers", "no numbers"])
def test_rows_do_not_depend_on_their_batch(name: str, fields: tuple[Field, ...]) -> None:
    model = small_model(name, fields)
    ids, numeric = inputs(8, fields)

    together = model(ids, numeric)
    one_by_one = [model(ids[i : i + 1], numeric[i : i + 1]) for i in range(8)]

    assert together.shape == (8,)
    assert all(logit.shape == (1,) for logit in one_by_one)
    torch.testing.assert_close(torch.cat(one_by_one), together, rtol=0, atol=1e-5)


@every_model
@pytest.mark.parametrize("fields", [FIELDS, NO_NUMBERS], ids=["numbers", "no numbers"])
def test_a_batch_without_rows_gives_no_logits_but_gradients(name: str, fields: tuple[Field, ...]) -> None:
    # The last batch of an epoch may have fewer rows than there are workers, who all add up gradients.
    model = small_model(name, fields).train()

    result = model(*inputs(0, fields))
    result.sum().backward()

    assert result.shape == (0,)
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_model
@pytest.mark.parametrize("fields", [FIELDS, NO_NUMBERS], ids=["numbers", "no numbers"])
def test_gradients_reach_every_weight(name: str, fields: tuple[Field, ...]) -> None:
    model = small_model(name, fields).train()

    model(*inputs(300, fields)).square().sum().backward()

    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.numel() == 0 or parameter.grad.to_dense().abs().sum() > 0, key


@every_model
def test_gradients_of_the_tables_are_sparse(name: str) -> None:
    model = small_model(name)

    model(torch.tensor([[0, 1, 5]]), torch.zeros(1, 2)).sum().backward()

    for weight in (model.embedding.weight, model.linear.weight):
        assert weight.grad is not None
        assert weight.grad.is_sparse
        assert weight.grad.coalesce().indices()[0].tolist() == [0, 7 + 1, 11 + 5]


@every_model
def test_a_weight_of_an_id_moves_the_logits_of_its_rows(name: str) -> None:
    model = small_model(name)
    ids, _ = inputs()
    before = logits(model, seed=1)

    with torch.no_grad():
        model.linear.weight[7 + 2] += 1.0  # id 2 of the second field

    has_it = (ids[:, 1] == 2).float()
    assert 0 < has_it.mean() < 1
    torch.testing.assert_close(logits(model, seed=1) - before, has_it, rtol=0, atol=1e-5)


@every_model
def test_ids_of_shards_are_taken_as_they_are(name: str) -> None:
    model = small_model(name)
    ids, numeric = inputs()

    assert torch.equal(model(ids.int(), numeric), model(ids, numeric))


@every_model
@pytest.mark.parametrize(("field", "id"), [(0, 7), (0, -1), (1, 4), (1, -1), (2, 9)])
def test_an_id_outside_its_table_is_refused_and_never_reads_another_field(
    name: str, field: int, id: int
) -> None:
    model = small_model(name)
    ids, numeric = inputs(5)
    ids[3, field] = id
    message = f"id {id} in row 3 of field '{NO_NUMBERS[field].name}' lies outside its table of"

    for given in (ids, ids.int()):
        with pytest.raises(ValueError, match=message):
            model(given, numeric)


@pytest.mark.parametrize("shape", [(5, 1), (5, 4), (3,), (5, 3, 1)])
def test_ids_of_another_shape_than_a_column_a_field_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"ids of shape {re.escape(str(shape))}: expected \(B, 3\)"):
        small_model("deepfm")(torch.zeros(shape, dtype=torch.int64), torch.zeros(5, 2))


@every_model
def test_fields_of_one_id_work(name: str) -> None:
    fields = (Field(name="a", kind="categorical", cardinality=1), *FIELDS)
    model = small_model(name, fields)

    assert logits(model, fields=fields).isfinite().all()


@pytest.mark.parametrize("name", ["deepfm", "dcn", "dcnv2", "gdcn", "autoint", "nfm"])
def test_a_single_field_works(name: str) -> None:
    model = small_model(name, FIELDS[:1])

    assert logits(model, fields=FIELDS[:1]).isfinite().all()


@every_model
def test_models_without_hidden_layers_work(name: str) -> None:
    model = small_model(name, hidden=())

    assert logits(model).isfinite().all()


@every_model
def test_data_without_categorical_fields_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"--model {name}: .*no categorical field"):
        build_model(name, [Field(name="x", kind="numeric")], {})


@every_model
def test_a_field_without_ids_is_refused_by_name(name: str) -> None:
    empty = Field(name="void", kind="categorical", cardinality=0)

    with pytest.raises(OptionError, match=f"--model {name}: field 'void' has cardinality 0"):
        build_model(name, [*FIELDS, empty], {})


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    known = "deepfm, dcn, dcnv2, gdcn, autoint, nfm, fibinet, dlrm"
    with pytest.raises(OptionError, match=f"--model deepfn: unknown; choose from {known}"):
        build_model("deepfn", FIELDS, {})


@every_model
def test_an_unknown_hyper_parameter_is_refused_by_name(name: str) -> None:
    with pytest.raises(OptionError, match=f"--model {name}: .*depth"):
        build_model(name, FIELDS, {**SHAPES[name], "depth": 3})


@every_model
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 0}, "--embedding-dim 0: must be at least 1"),
        ({"hidden": (8, -4)}, "--hidden 8 -4: must be at least 1"),
        ({"dropout": 1.5}, "--dropout 1.5: a probability lies in [0, 1); try 0.2"),
        ({"dropout": 1.0}, "--dropout 1.0: a probability"),
        ({"dropout": math.nan}, "--dropout nan: a probability"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_by_its_option(name: str, changes: dict, message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}.* \\(--model {name}\\)$"):
        build_model(name, FIELDS, {**SHAPES[name], **changes})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "cross_layers", 0) for name in ("dcn", "dcnv2", "gdcn")),
        ("autoint", "interacting_layers", 0),
        ("autoint", "heads", 0),
        ("fibinet", "reduction", 0),
        ("dlrm", "bottom", (4, 0)),
    ],
)
def test_numbers_of_things_below_one_are_refused_by_name(name: str, option: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"--model {name}: {option} .*must be at least 1"):
        build_model(name, FIELDS, {**SHAPES[name], option: value})


@every_model
@pytest.mark.parametrize(
    ("hidden", "names"), [((), []), ((8,), []), ((8, 8), ["mlp.3"]), ((8,) * 4, ["mlp.3", "mlp.6"])]
)
def test_the_second_and_third_linear_layers_are_compressed(
    name: str, hidden: tuple[int, ...], names: list[str]
) -> None:
    assert small_model(name, hidden=hidden).compressible_linears == names
