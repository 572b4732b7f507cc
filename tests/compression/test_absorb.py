"""First-order weights compressed together with the embeddings of the same ids, by NumPy's account."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.compression.budget import allocate, structure_bytes
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.absorb import first_order_scale, in_agreeing_units
from afm_dist.methods.low_rank.config import Factors, LowRank
from afm_dist.methods.low_rank.factorize import principal
from afm_dist.methods.low_rank.method import tail_errors
from afm_dist.methods.low_rank.ranks import FixedRank, plan_ranks, using
from afm_dist.methods.low_rank.weighted import regularised
from afm_dist.models.base import CTRModel
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import Moments, moments_of_table
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.statistics.spectrum import eigendecompose
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.first_order import CodedLinearTerm, LinearTerm, joint_rows
from tests.models.small_models import (
    CARDINALITIES,
    FIELDS,
    SHAPES,
    Array,
    T,
    inputs,
    logits,
    small_model,
)

TABLE, TERM = "embedding", "linear"
SITE = 0

every_rank = pytest.mark.parametrize("rank", range(1, T + 2))
every_method = pytest.mark.parametrize("method", ["afm", "svd", "weighted"])


def counts(field: int) -> Tensor:
    return torch.bincount(inputs()[0][:, field], minlength=CARDINALITIES[field])


def joint_moments(model: CTRModel) -> dict[str, Moments]:
    return {
        field_key(TABLE, name): moments_of_table(joint_rows(model.embedding, model.linear, i), counts(i))
        for i, name in enumerate(model.embedding.names)
    }


def joint_sensitivity(model: CTRModel) -> dict[str, Tensor]:
    ids, numeric = inputs()
    batch = Batch(ids, numeric, torch.zeros(len(ids)))
    return output_sensitivity(model, [batch], [TABLE], forward=forward_batch, absorbing=[TABLE])


def plan_of(rank: int, method: Factors = "afm", **changes: Any) -> Plan:
    entry = PlanEntry(TABLE, LowRank(factors=method, rank=rank, absorbs=TERM))
    return using(Plan(entries=(entry,)), **changes)


def absorbed(model: CTRModel, rank: int, method: Factors = "afm", *, weighted: bool = True) -> CTRModel:
    sensitivity = joint_sensitivity(model) if weighted else None
    compress_(model, plan_of(rank, method), joint_moments(model), sensitivity)
    return model


def rows_of(model: CTRModel, field: int) -> Array:
    """[e; w] of the ids of an uncompressed field, float64."""
    return joint_rows(model.embedding, model.linear, field).double().numpy()


def restored(model: CTRModel, field: int) -> Array:
    """[ê; ŵ] of the ids of a compressed field, float64."""
    table, term = model.embedding, model.linear
    codes = table.weight[table.rows(field)].detach().double()
    embeddings = codes @ table.projection[field].detach().double().T + table.bias[field].detach()
    weights = codes @ term.projection[field].detach().double() + term.bias[field].detach()
    return torch.cat([embeddings, weights[:, None]], 1).numpy()


def best_of_rank(rows: Array, occurring: Array, rank: int) -> tuple[Array, Array]:
    """The best affine approximation of rows that occur so often, and all its eigenvalues, descending."""
    shares = occurring / occurring.sum()
    mean = shares @ rows
    _, values, directions = np.linalg.svd((rows - mean) * np.sqrt(shares)[:, None], full_matrices=False)
    kept = directions[:rank].T @ directions[:rank]
    return (rows - mean) @ kept + mean, values**2


@every_rank
@pytest.mark.parametrize("field", range(3))
def test_afm_is_the_joint_svd_of_embeddings_and_first_order_weights(rank: int, field: int) -> None:
    rows, occurring = rows_of(small_model("deepfm"), field), counts(field).double().numpy()
    expected, _ = best_of_rank(rows, occurring, rank)

    model = absorbed(small_model("deepfm"), rank, weighted=False)

    np.testing.assert_allclose(restored(model, field), expected, atol=2e-6)


@every_rank
def test_a_first_order_weight_counts_as_much_as_the_logit_feels_it(rank: int) -> None:
    before = small_model("deepfm")
    G = joint_sensitivity(before)[field_key(TABLE, "site")].numpy()
    units = np.array([1.0] * T + [np.sqrt(G[T, T] / np.trace(G[:T, :T]) * T)])
    expected, _ = best_of_rank(rows_of(before, SITE) * units, counts(SITE).double().numpy(), rank)

    model = absorbed(small_model("deepfm"), rank)

    np.testing.assert_allclose(restored(model, SITE), expected / units, atol=2e-6)


@every_rank
def test_the_error_is_the_sum_of_the_dropped_eigenvalues(rank: int) -> None:
    rows, occurring = rows_of(small_model("deepfm"), SITE), counts(SITE).double().numpy()
    _, eigenvalues = best_of_rank(rows, occurring, rank)

    model = absorbed(small_model("deepfm"), rank, weighted=False)

    error = occurring @ np.square(restored(model, SITE) - rows).sum(1) / occurring.sum()
    assert error == pytest.approx(eigenvalues[rank:].sum(), rel=1e-4, abs=1e-11)


@every_rank
def test_the_weighted_error_is_the_sum_of_the_dropped_eigenvalues_in_the_metric(rank: int) -> None:
    before = small_model("deepfm")
    rows, occurring = rows_of(before, SITE), counts(SITE).double().numpy()
    key = field_key(TABLE, "site")
    sensitivities = in_agreeing_units(Statistics({}, joint_sensitivity(before)), [key]).sensitivity(
        key, T + 1
    )
    scale = first_order_scale(joint_sensitivity(before)[key])
    metric = regularised(sensitivities).numpy()
    root = np.linalg.cholesky(metric)
    _, eigenvalues = best_of_rank(rows * ([1.0] * T + [scale]) @ root, occurring, rank)

    model = absorbed(small_model("deepfm"), rank, "weighted")

    difference = (restored(model, SITE) - rows) * ([1.0] * T + [scale])
    error = occurring @ ((difference @ metric) * difference).sum(1) / occurring.sum()
    assert error == pytest.approx(eigenvalues[rank:].sum(), rel=1e-4, abs=1e-10)


def test_the_gradient_of_a_first_order_weight_is_1_and_its_products_are_the_mean_gradient() -> None:
    model = small_model("deepfm").double()
    ids, numeric = inputs()
    codes = model.embedding.lookup(ids).detach().requires_grad_()
    vectors = model.embedding.expand(codes)
    model.embedding.forward = lambda _: (codes, vectors)  # type: ignore[method-assign]
    (gradient,) = torch.autograd.grad(model(ids, numeric.double()).sum(), codes)
    own = gradient[:, SITE]

    ids, numeric = inputs()
    batch = Batch(ids, numeric.double(), torch.zeros(len(ids)))
    G = output_sensitivity(
        small_model("deepfm").double(), [batch], [TABLE], forward=forward_batch, absorbing=[TABLE]
    )[field_key(TABLE, "site")]

    torch.testing.assert_close(G[:T, :T], own.T @ own / len(own))
    torch.testing.assert_close(G[T, :T], own.mean(0))
    assert float(G[T, T]) == 1.0


def test_the_logit_itself_changes_as_predicted_where_it_is_first_order_alone() -> None:
    # All but the first-order term is silenced, so the prediction is exact but for correlated fields.
    model = small_model("nfm")
    with torch.no_grad():
        model.mlp[-1].weight.zero_()
        for field in (1, 2):
            model.linear.weight[model.embedding.rows(field)] = 0.0
    before, moments, sensitivities = logits(model, seed=1), joint_moments(model), joint_sensitivity(model)
    key = field_key(TABLE, "site")
    known = in_agreeing_units(Statistics(moments, sensitivities), [key])
    whole = principal(eigendecompose(known[key]), T + 1)

    compress_(model, plan_of(2), moments, sensitivities)

    error = float((logits(model, seed=1) - before).square().mean())
    assert error == pytest.approx(float(tail_errors(whole, known.sensitivity(key, T + 1))[2]), rel=1e-3)


@pytest.mark.parametrize("method", ["afm", "weighted"])
def test_the_error_that_a_budget_predicts_is_that_of_the_rows_as_the_logit_feels_them(
    method: Factors,
) -> None:
    model = small_model("deepfm")
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS)
    moments, sensitivities = joint_moments(model), joint_sensitivity(model)
    before = [rows_of(model, field) for field in range(3)]

    budget = structure_bytes(config, plan_of(2, method))
    found = allocate(config, plan_of(1, method), Statistics(moments, sensitivities), budget)

    assert found.plan == plan_of(2, method)
    absorbed(model, 2, method)
    actual = 0.0
    for field, (name, rows) in enumerate(zip(model.embedding.names, before, strict=True)):
        difference, G = restored(model, field) - rows, sensitivities[field_key(TABLE, name)].numpy()
        occurring = counts(field).double().numpy()
        actual += occurring @ ((difference @ G) * difference).sum(1) / occurring.sum()
    assert found.error == pytest.approx(actual, rel=1e-4)


def test_units_that_agree_leave_what_the_logit_feels_as_it_is() -> None:
    model = small_model("deepfm")
    key = field_key(TABLE, "site")
    known = Statistics(joint_moments(model), joint_sensitivity(model))

    agreed = in_agreeing_units(known, [key])

    ours, theirs = ((one[key].covariance @ one.sensitivity(key, T + 1)).trace() for one in (known, agreed))
    torch.testing.assert_close(ours, theirs)
    squares = agreed.sensitivity(key, T + 1).diagonal()
    torch.testing.assert_close(squares[:T].mean(), squares[T])


@pytest.mark.parametrize("sensitivity", [None, torch.zeros(3, 3), torch.diag(torch.tensor([0.0, 0.0, 1.0]))])
def test_what_was_not_measured_or_is_not_felt_counts_alike(sensitivity: Tensor | None) -> None:
    assert first_order_scale(sensitivity) == 1.0


@every_method
@pytest.mark.parametrize("rank", [2, T + 1])
def test_equal_columns_cost_one_rank_less(method: Factors, rank: int) -> None:
    model = small_model("deepfm")
    with torch.no_grad():
        model.linear.weight[:, 0] = model.embedding.weight[:, 1]
        model.embedding.weight[:, 2:] = model.embedding.weight[:, :2]
    before = logits(model)

    absorbed(model, rank, method)

    # Weighted: the condition of the regularised metric costs digits.
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5 if method != "weighted" else 1e-4)


@every_rank
def test_first_order_weights_of_0_stay_0_and_the_embeddings_are_what_they_are_alone(rank: int) -> None:
    kept, model = small_model("deepfm"), small_model("deepfm")
    for each in (kept, model):
        nn.init.zeros_(each.linear.weight)
    if rank <= T:
        alone = {
            field_key(TABLE, name): moments_of_table(
                kept.embedding.weight.detach()[kept.embedding.rows(i)], counts(i)
            )
            for i, name in enumerate(kept.embedding.names)
        }
        compress_(kept, plan_ranks(alone, FixedRank(rank=rank)), alone)

    absorbed(model, rank, weighted=False)

    torch.testing.assert_close(logits(model), logits(kept), rtol=0, atol=1e-5)
    for field in range(3):
        assert np.abs(restored(model, field)[:, T]).max() < 1e-6


def test_a_field_of_equal_ids_is_its_mean() -> None:
    model = small_model("deepfm")
    with torch.no_grad():
        for table in (model.embedding, model.linear):
            table.weight[:7] = table.weight[0].clone()
    before = rows_of(model, SITE)

    absorbed(model, 1, "weighted")

    np.testing.assert_allclose(restored(model, SITE), before, atol=1e-6)


def test_the_numbers_keep_their_weights_and_the_table_is_gone() -> None:
    model = small_model("deepfm")
    numeric = model.linear.numeric

    absorbed(model, 2)

    assert isinstance(model.linear, CodedLinearTerm)
    assert model.linear.numeric is numeric
    names = {name for name in model.state_dict() if name.startswith(("linear", "embedding"))}
    assert names == {
        *("embedding.weight", "embedding.projection", "embedding.bias"),
        *("linear.projection", "linear.bias", "linear.numeric"),
    }
    assert model.embedding.weight.shape == (20, 2)


def test_frozen_first_order_weights_stay_frozen() -> None:
    model = small_model("deepfm")
    model.linear.weight.requires_grad_(False)

    absorbed(model, 2)

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"linear.projection", "linear.bias"}.isdisjoint(trained)
    assert {"linear.numeric", "embedding.weight"} <= trained


# Refusals ----------------------------------------------------------------------------------------


def refused(model: nn.Module, plan: Plan, match: str, moments: dict[str, Moments] | None = None) -> None:
    """By both; the model stays as it was."""
    state, modules = dict(model.state_dict()), dict(model.named_modules())
    for rewrite in (
        lambda: compress_(model, plan, {} if moments is None else moments),
        *([] if moments is not None else [lambda: restructure_(model, plan)]),
    ):
        with pytest.raises(OptionError, match=match):
            rewrite()
        assert dict(model.named_modules()) == modules
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class Undeclared(nn.Module):
    """A model of someone else's, without a declaration."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = small_model("deepfm").embedding
        self.linear = LinearTerm(CARDINALITIES, 2)
        self.table = nn.Embedding(5, 4)


def test_a_model_that_declares_nothing_is_refused() -> None:
    refused(Undeclared(), plan_of(2), "which Undeclared declares .as absorbs. for nothing")


def test_a_plain_table_absorbs_nothing() -> None:
    plan = Plan(entries=(PlanEntry("table", LowRank(rank=2, absorbs=TERM)),))

    refused(Undeclared(), plan, "table cannot absorb linear: only the fused tables")


def test_another_term_than_the_declared_one_is_refused() -> None:
    plan = plan_of(2, absorbs="mlp.0")

    refused(small_model("deepfm"), plan, "DeepFM declares .as absorbs. for linear into embedding")


def test_a_term_over_other_fields_is_refused() -> None:
    model = small_model("deepfm")
    model.linear = LinearTerm(CARDINALITIES[:2], 2)

    refused(model, plan_of(2), "linear has 2 fields of 11 rows, embedding 3 of 20")


def test_a_term_of_another_type_is_refused() -> None:
    model = small_model("deepfm")
    model.linear = nn.Identity()

    refused(model, plan_of(2), "it is a Identity beside a FusedEmbedding")


def test_a_rank_above_the_joint_width_is_refused() -> None:
    message = f"rank {T + 2} for embedding: larger than the layer's {T + 1}"

    refused(small_model("deepfm"), plan_of(T + 2), message)


def test_a_term_with_hooks_is_refused() -> None:
    model = small_model("deepfm")
    moments = joint_moments(model)
    model.linear.register_forward_hook(lambda *_: None)

    refused(model, plan_of(2), "linear has hooks", moments)


def test_a_table_that_was_compressed_absorbs_nothing() -> None:
    model = absorbed(small_model("deepfm"), 2)

    refused(model, plan_of(2), "embedding is already compressed")


def test_moments_of_the_embeddings_alone_are_refused_with_the_fix() -> None:
    model = small_model("deepfm")
    alone = {
        field_key(TABLE, name): moments_of_table(model.embedding.weight[model.embedding.rows(i)], counts(i))
        for i, name in enumerate(model.embedding.names)
    }

    refused(model, plan_of(2), "moments_from_counts.model, manifest, 'embedding', absorbs='linear'", alone)


def test_the_sensitivity_of_the_embeddings_alone_is_refused_with_the_fix() -> None:
    model = small_model("deepfm")
    ids, numeric = inputs()
    batch = Batch(ids, numeric, torch.zeros(len(ids)))
    alone = output_sensitivity(model, [batch], [TABLE], forward=forward_batch)

    with pytest.raises(OptionError, match=r"give output_sensitivity absorbing=\['embedding'\]"):
        compress_(model, plan_of(2), joint_moments(model), alone)


def test_the_method_weighted_needs_the_joint_sensitivity() -> None:
    model = small_model("deepfm")

    refused(model, plan_of(2, "weighted"), "needs the sensitivity of the logit", joint_moments(model))


def test_a_later_mistake_in_the_plan_undoes_it() -> None:
    model = small_model("deepfm")
    plan = plan_of(2, folded_into="mlp.0") + Plan(
        entries=(PlanEntry("mlp.99", LowRank(factors="afm", rank=1)),)
    )

    refused(model, plan, "no module 'mlp.99'", joint_moments(model))
