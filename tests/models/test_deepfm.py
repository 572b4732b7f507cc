from __future__ import annotations

import pytest
import torch

from afm_dist.checkpoint import count_parameters
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.manifest import Field
from afm_dist.errors import OptionError
from afm_dist.models import build_model
from afm_dist.models.deepfm import DeepFM


def fields(n_categorical: int, ids: int, n_numeric: int) -> list[Field]:
    """Categorical fields whose cardinalities sum to ``ids``, and numeric ones."""
    sizes = [ids // n_categorical] * n_categorical
    sizes[0] += ids - sum(sizes)
    categorical = [Field(name=f"c{i}", kind="categorical", cardinality=size) for i, size in enumerate(sizes)]
    return categorical + [Field(name=f"n{i}", kind="numeric") for i in range(n_numeric)]


def plan(mlp_rank: int, code_dim: int | None) -> Plan:
    entries = [
        PlanEntry(name=name, method="afm", rank=mlp_rank, activation="plain") for name in ("mlp.3", "mlp.6")
    ]
    if code_dim is not None:
        entries.append(PlanEntry(name="embedding", method="afm", rank=code_dim, folded_into="mlp.0"))
    return Plan(entries=tuple(entries))


CRITEO = (fields(26, 33_762_577, 13), {"embedding_dim": 16, "hidden": (400, 400, 400)})
AVAZU = (fields(22, 9_449_445, 0), {"embedding_dim": 50, "hidden": (2000, 2000, 2000)})


@pytest.mark.parametrize(
    ("data", "changes", "millions"),
    [
        (CRITEO, Plan(), 574.46),
        (CRITEO, plan(64, None), 574.24),
        (CRITEO, plan(64, 2), 101.42),
        (AVAZU, Plan(), 492.13),
        (AVAZU, plan(320, None), 486.69),
        (AVAZU, plan(320, 8), 87.98),
    ],
    ids=["criteo", "criteo-mlp", "criteo-emb", "avazu", "avazu-mlp", "avazu-emb"],
)
def test_parameters_are_those_of_the_paper(data, changes: Plan, millions: float) -> None:
    with torch.device("meta"):
        model = restructure_(build_model("deepfm", *data), changes)

    assert count_parameters(model) / 1e6 == pytest.approx(millions, abs=0.01)


SMALL = fields(3, 20, 2)


def small_model() -> DeepFM:
    torch.manual_seed(0)
    model = build_model("deepfm", SMALL, {"embedding_dim": 4, "hidden": (6, 5)})
    assert isinstance(model, DeepFM)
    torch.nn.init.normal_(model.linear.weight)
    torch.nn.init.normal_(model.linear.numeric)
    return model.eval()


def test_the_logit_is_linear_plus_pairwise_plus_deep() -> None:
    model = small_model()
    ids, numeric = torch.tensor([[0, 1, 5], [7, 3, 2]]), torch.tensor([[0.5, -1.0], [2.0, 0.0]])

    logits = model(ids, numeric)

    starts = [0, 8, 14]
    for row in range(2):
        rows = [start + int(i) for start, i in zip(starts, ids[row], strict=True)]
        vectors = model.embedding.weight[rows]
        linear = model.linear.weight[rows].sum() + numeric[row] @ model.linear.numeric
        pairs = sum(vectors[i] @ vectors[j] for i in range(3) for j in range(i + 1, 3))
        deep = model.mlp(torch.cat([vectors.flatten(), numeric[row]])[None])[0, 0]
        torch.testing.assert_close(logits[row], linear + pairs + deep, rtol=0, atol=1e-5)


def test_a_batch_without_rows_gives_no_logits() -> None:
    # The last batch of an epoch may have fewer rows than there are workers.
    model = small_model().train()

    logits = model(torch.empty(0, 3, dtype=torch.int64), torch.empty(0, 2))
    logits.sum().backward()

    assert logits.shape == (0,)


def test_gradients_of_the_tables_are_sparse() -> None:
    model = small_model()

    model(torch.tensor([[0, 1, 5]]), torch.zeros(1, 2)).sum().backward()

    for weight in (model.embedding.weight, model.linear.weight):
        assert weight.grad.is_sparse
        assert weight.grad.coalesce().indices()[0].tolist() == [0, 9, 19]


@pytest.mark.parametrize(
    ("hidden", "names"), [((8,), []), ((8, 8), ["mlp.3"]), ((8,) * 4, ["mlp.3", "mlp.6"])]
)
def test_the_second_and_third_linear_layers_are_compressed(hidden: tuple[int, ...], names: list[str]) -> None:
    model = DeepFM(SMALL, embedding_dim=4, hidden=hidden)

    assert model.compressible_linears == names


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"deepfn.*choose from deepfm"):
        build_model("deepfn", SMALL, {})


def test_an_unknown_hyper_parameter_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="depth"):
        build_model("deepfm", SMALL, {"depth": 3})


def test_data_without_categorical_fields_is_refused() -> None:
    with pytest.raises(OptionError, match="no categorical field"):
        build_model("deepfm", [Field(name="x", kind="numeric")], {})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"embedding_dim": 0}, "embedding_dim 0"),
        ({"hidden": (8, -4)}, r"hidden \(8, -4\)"),
        ({"dropout": 1.5}, "1.5"),
    ],
)
def test_shape_that_cannot_be_is_refused(changes: dict, told: str) -> None:
    with pytest.raises(OptionError, match=f"--model deepfm: .*{told}"):
        build_model("deepfm", fields(2, 20, 1), changes)
