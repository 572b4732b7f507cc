"""AFM in the metric of the sensitivity: the best affine map of its rank, by oracles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import ACTIVATIONS, FACTORS, LowRank
from afm_dist.methods.low_rank.factorizations import FACTORIZATIONS
from afm_dist.methods.low_rank.factorize import Projection, principal, projected_linear, projected_table
from afm_dist.methods.low_rank.ranks import FixedRank, plan_ranks
from afm_dist.methods.low_rank.weighted import SHRINKAGE, regularised, weighted_projection
from afm_dist.statistics.accumulator import MomentAccumulator
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.statistics.spectrum import eigendecompose
from tests.small_dataset import FIELDS

B, M = 1500, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(rows: Tensor) -> Moments:
    accumulator = MomentAccumulator(rows.shape[1])
    accumulator.update(rows)
    return accumulator.moments


def outputs(seed: int = 0) -> Tensor:
    """Rows of unequal directions with a mean far from zero, shape (B, M)."""
    mixing = random(M, M, seed=seed + 1) * torch.logspace(0.5, -1, M, dtype=torch.float64)
    return random(B, M, seed=seed) @ mixing.T + 2


def sensitivity(seed: int = 0, rows: int = 40) -> Tensor:
    """E[ggᵀ] of some gradients, in the tiny unit that logits have."""
    gradients = 1e-3 * random(rows, M, seed=seed + 7) * torch.logspace(0, 1, M, dtype=torch.float64)
    return gradients.T @ gradients / rows


def mapped(projection: Projection, y: Tensor) -> Tensor:
    return (y - projection.mean) @ (projection.decode @ projection.encode).T + projection.mean


def weighted_error(y: Tensor, approximation: Tensor, metric: Tensor) -> float:
    difference = y - approximation
    return float(((difference @ metric) * difference).sum(1).mean())


@pytest.mark.parametrize("rank", range(1, M))
@pytest.mark.parametrize("seed", range(3))
def test_the_weighted_error_is_the_sum_of_the_dropped_eigenvalues(rank: int, seed: int) -> None:
    y, metric = outputs(seed), regularised(sensitivity(seed))
    root = torch.linalg.cholesky(metric)
    dropped = torch.linalg.eigvalsh(root.T @ y.T.cov(correction=0) @ root)[:-rank].sum()

    projection = weighted_projection(moments_of(y), sensitivity(seed), rank)

    assert weighted_error(y, mapped(projection, y), metric) == pytest.approx(float(dropped), rel=1e-8)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_no_other_affine_map_of_the_same_rank_has_a_smaller_weighted_error(rank: int) -> None:
    y, metric = outputs(), regularised(sensitivity())
    projection = weighted_projection(moments_of(y), sensitivity(), rank)
    ours = weighted_error(y, mapped(projection, y), metric)

    for size in (1.0, 0.1, 0.01, 0.001):
        for seed in range(20):
            decode = projection.decode + size * random(M, rank, seed=seed)
            encode = projection.encode + size * random(rank, M, seed=seed + 100)
            shift = projection.mean + size * random(M, seed=seed + 200)
            theirs = (y - projection.mean) @ (decode @ encode).T + shift
            assert ours <= weighted_error(y, theirs, metric) * (1 + 1e-12)


def test_a_search_by_gradients_ends_where_it_is() -> None:
    y, metric, rank = outputs(), regularised(sensitivity()), 2
    ours = weighted_error(y, mapped(weighted_projection(moments_of(y), sensitivity(), rank), y), metric)
    decode, encode, shift = (
        random(*shape, seed=seed).requires_grad_() for seed, shape in enumerate([(M, rank), (rank, M), (M,)])
    )
    search = torch.optim.LBFGS([decode, encode, shift], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        difference = y - (y @ (decode @ encode).T + shift)
        value = ((difference @ metric) * difference).sum(1).mean()
        value.backward()
        return value

    search.step(loss)

    found = float(loss().detach())
    assert ours <= found * (1 + 1e-12)
    assert found == pytest.approx(ours, rel=1e-4)


def test_plain_afm_loses_more_of_what_the_logit_feels() -> None:
    y, metric = outputs(), regularised(sensitivity())
    plain = principal(eigendecompose(moments_of(y)), 3)

    weighted = weighted_projection(moments_of(y), sensitivity(), 3)

    assert weighted_error(y, mapped(weighted, y), metric) < 0.9 * weighted_error(y, mapped(plain, y), metric)


@pytest.mark.parametrize("rank", range(1, M + 1))
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_where_all_outputs_count_alike_it_is_afm(rank: int, scale: float) -> None:
    moments = moments_of(outputs())
    afm = principal(eigendecompose(moments), rank)

    weighted = weighted_projection(moments, scale * torch.eye(M, dtype=torch.float64), rank)

    for name in ("mean", "encode", "decode", "deviations"):
        torch.testing.assert_close(getattr(weighted, name), getattr(afm, name), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_columns_have_length_1_and_their_largest_entry_is_positive(seed: int) -> None:
    decode = weighted_projection(moments_of(outputs(seed)), sensitivity(seed), 4).decode

    torch.testing.assert_close(decode.norm(dim=0), torch.ones(4, dtype=torch.float64))
    assert (decode.gather(0, decode.abs().argmax(0, keepdim=True)) > 0).all()


def test_scores_have_the_deviations_it_says() -> None:
    y = outputs()
    projection = weighted_projection(moments_of(y), sensitivity(), 4)

    torch.testing.assert_close((y @ projection.encode.T).std(0, correction=0), projection.deviations)


@pytest.mark.parametrize("rank", [2, M])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_and_tables_have_the_error_of_the_map(rank: int, activation: str) -> None:
    weight, bias, x = random(M, 9, seed=3), random(M, seed=4), random(B, 9, seed=5)
    y = functional.linear(x, weight, bias)
    projection = weighted_projection(moments_of(y), sensitivity(), rank)

    if activation != "plain":  # which cuts off a half
        factors = projected_linear(weight, bias, projection, activation, 50.0)
        scores = functional.linear(x, factors.first_weight, factors.first_bias)
        scores = scores.relu() if activation == "shifted" else scores
        result = functional.linear(scores, factors.second_weight, factors.second_bias)
        torch.testing.assert_close(result, mapped(projection, y), rtol=0, atol=1e-9)
    table = projected_table(y, projection)
    torch.testing.assert_close(
        table.codes @ table.projection.T + table.bias, mapped(projection, y), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("rank", [0, M + 1])
def test_a_rank_outside_the_outputs_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank {rank} is outside 1\.\.{M}"):
        weighted_projection(moments_of(outputs()), sensitivity(), rank)


# Degenerate sensitivity --------------------------------------------------------------------------

DEGENERATE = {
    "zero": torch.zeros(M, M, dtype=torch.float64),
    "one direction": torch.ones(M, M, dtype=torch.float64),
    "one output": torch.diag(torch.tensor([1.0] + [0.0] * (M - 1), dtype=torch.float64)),
    "tiny": 1e-300 * torch.eye(M, dtype=torch.float64),
    "in float32": sensitivity().float(),
}
degenerate = pytest.mark.parametrize("G", DEGENERATE.values(), ids=DEGENERATE)


@degenerate
def test_a_regularised_sensitivity_has_an_inverse(G: Tensor) -> None:
    weights = torch.linalg.eigvalsh(regularised(G))

    assert weights.dtype == torch.float64
    assert weights.min() >= SHRINKAGE * (1 - 1e-9)
    assert weights.max() / weights.min() <= M / SHRINKAGE * (1 + 1e-6)


@degenerate
@pytest.mark.parametrize("rows", ["independent", "combined", "constant", "two"])
def test_outputs_without_variance_and_sensitivities_without_inverse_give_finite_factors(
    G: Tensor, rows: str
) -> None:
    y = outputs()
    if rows == "combined":
        y[:, 3:] = y[:, :3]
    if rows == "constant":
        y[:] = 5.0
    if rows == "two":
        y = y[:2]

    projection = weighted_projection(moments_of(y), G, M)

    assert all(torch.isfinite(getattr(projection, name)).all() for name in ("encode", "decode", "deviations"))
    torch.testing.assert_close(mapped(projection, y), y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sensitivity_of_no_numbers_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        regularised(torch.full((M, M), value))


# In models ---------------------------------------------------------------------------------------

CONFIG = ModelConfig(
    architecture="deepfm",
    hyper_parameters={"embedding_dim": 8, "hidden": (24, 20, 16), "dropout": 0.0},
    fields=tuple(FIELDS),
)
NAMES = ["mlp.3", "mlp.6", "embedding"]


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(4):
        ids = torch.stack([torch.randint(0, n, (200,), generator=generator) for n in (30, 7)], 1)
        made.append(Batch(ids, torch.randn(200, 1, generator=generator), torch.zeros(200)))
    return made


def deepfm() -> nn.Module:
    torch.manual_seed(0)
    model = CONFIG.build().eval()
    nn.init.normal_(model.embedding.weight)
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return torch.cat([forward_batch(model, batch) for batch in batches()])


def measured(model: nn.Module) -> tuple[dict[str, Moments], dict[str, Tensor]]:
    return (
        collect_moments(model, batches(), NAMES, forward_fn=forward_batch),
        output_sensitivity(model, batches(), NAMES, forward=forward_batch),
    )


def test_every_method_of_a_plan_has_a_class() -> None:
    assert tuple(FACTORIZATIONS) == FACTORS


@pytest.mark.parametrize("activation", ["none", "shifted"])
@pytest.mark.parametrize("folded_into", [None, "mlp.0"], ids=["unfolded", "folded"])
def test_full_rank_reproduces_the_logits(activation: str, folded_into: str | None) -> None:
    model = deepfm()
    expected = logits(model)
    moments, found = measured(model)
    entries = [
        PlanEntry(name, LowRank(factors="weighted", rank=width, activation=activation, kappa=100.0))
        for name, width in (("mlp.3", 20), ("mlp.6", 16))
    ]
    table = PlanEntry("embedding", LowRank(factors="weighted", rank=8, folded_into=folded_into))

    compress_(model, Plan(entries=(*entries, table)), moments, found)

    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


class Readout(nn.Module):
    """A layer read by fixed weights: the logit's change is the readout of the error, without more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(6, 5).double()
        self.weights = torch.tensor([3.0, 1.0, 0.3, 0.1, 0.0], dtype=torch.float64)

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        return self.layer(numeric) @ self.weights


def test_one_component_is_nearly_enough_for_a_linear_readout() -> None:
    batch = Batch(torch.zeros(400, 0), random(400, 6), torch.zeros(400))
    errors = {}
    for method in ("afm", "weighted"):
        model = Readout()
        before = forward_batch(model, batch)
        moments = collect_moments(model, [batch], ["layer"], forward_fn=forward_batch)
        found = output_sensitivity(model, [batch], ["layer"], forward=forward_batch)
        compress_(model, plan_ranks(dict(moments), FixedRank(rank=1), method=method), moments, found)
        errors[method] = float((forward_batch(model, batch) - before).square().mean().detach())

    assert errors["weighted"] < 0.05 * errors["afm"]


def test_weighting_without_a_sensitivity_is_refused_with_the_way_to_measure_it() -> None:
    model = deepfm()
    moments, found = measured(model)
    plan = plan_ranks(dict(moments), FixedRank(rank=2), method="weighted")
    del found["mlp.6"]

    with pytest.raises(OptionError, match=r"needs the sensitivity.*output_sensitivity"):
        compress_(model, plan, moments)
    with pytest.raises(OptionError, match=r"mlp\.6 needs the sensitivity"):
        compress_(model, plan, moments, found)
    assert isinstance(model.get_submodule("mlp.3"), nn.Linear)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (torch.eye(3), r"sensitivity of mlp\.3 has shape \(3, 3\), the module has 20 outputs"),
        (torch.full((20, 20), float("nan")), r"sensitivity of mlp\.3 holds NaN"),
    ],
    ids=["another width", "NaN"],
)
def test_a_sensitivity_of_another_model_is_refused(broken: Tensor, message: str) -> None:
    model = deepfm()
    moments, found = measured(model)
    plan = plan_ranks(dict(moments), FixedRank(rank=2), method="weighted")

    with pytest.raises(OptionError, match=message):
        compress_(model, plan, moments, {**found, "mlp.3": broken})
