from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.compression.budget import allocate, parse_bytes, structure_bytes
from afm_dist.compression.config import MethodConfig
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.compression.variant import FieldRanks
from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.factorize import principal
from afm_dist.methods.low_rank.method import tail_errors
from afm_dist.methods.low_rank.ranks import GivenRanks, plan_ranks
from afm_dist.methods.rounding.config import rounding
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.statistics.spectrum import eigendecompose
from afm_dist.statistics.statistics import Statistics
from tests.small_dataset import FIELDS

CONFIG = ModelConfig(
    architecture="deepfm",
    hyper_parameters={"embedding_dim": 8, "hidden": (24, 20, 16), "dropout": 0.0},
    fields=tuple(FIELDS),
)
ENTRIES = (
    PlanEntry("mlp.3", LowRank(factors="afm", rank=1, activation="shifted")),
    PlanEntry("mlp.6", LowRank(factors="afm", rank=1, activation="shifted")),
    PlanEntry("embedding", LowRank(factors="afm", rank=1, folded_into="mlp.0")),
)
WHOLE = Plan(entries=ENTRIES)
NAMES = [entry.name for entry in ENTRIES]


def ranks_of(configs: Mapping[str, MethodConfig | None]) -> dict[str, Any]:
    return {name: None if config is None else config.size for name, config in configs.items()}


def batches(count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = torch.stack([torch.randint(0, n, (200,), generator=generator) for n in (30, 7)], 1)
        made.append(Batch(ids, torch.randn(200, 1, generator=generator), torch.zeros(200)))
    return made


def deepfm() -> nn.Module:
    torch.manual_seed(0)
    model = CONFIG.build().eval()
    nn.init.normal_(model.embedding.weight)
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return deepfm()


@pytest.fixture(scope="module")
def moments(model: nn.Module):
    return collect_moments(model, batches(), NAMES, forward_fn=forward_batch)


@pytest.fixture(scope="module")
def sensitivity(model: nn.Module) -> dict[str, Tensor]:
    return output_sensitivity(model, batches(), NAMES, forward=forward_batch)


class Readout(nn.Module):
    """A layer read by fixed weights: its errors reach the logit undistorted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(6, 5).double()
        self.weights = torch.randn(5, dtype=torch.float64)

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        return self.layer(numeric) @ self.weights


def test_of_a_linear_readout_it_is_the_product_of_its_weights() -> None:
    model = Readout()
    rows = [Batch(torch.zeros(50, 0), torch.randn(50, 6, dtype=torch.float64), torch.zeros(50))]

    found = output_sensitivity(model, rows, ["layer"], forward=forward_batch)

    torch.testing.assert_close(found["layer"], torch.outer(model.weights, model.weights))


def test_it_is_measured_on_one_thread_whatever_the_machine_has() -> None:
    rows = [Batch(torch.zeros(5, 0), torch.randn(5, 6, dtype=torch.float64), torch.zeros(5))]
    seen: list[int] = []

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(torch.get_num_threads())
        return forward_batch(model, batch)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        output_sensitivity(Readout(), rows, ["layer"], forward=forward)
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)

    assert (seen, after) == ([1], 2)


def test_the_predicted_error_of_a_linear_readout_is_the_one_there_is() -> None:
    model = Readout()
    numeric = torch.randn(400, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows = [Batch(torch.zeros(400, 0), numeric, torch.zeros(400))]
    moments = collect_moments(model, rows, ["layer"], forward_fn=forward_batch)
    spectrum = eigendecompose(moments["layer"])
    sensitivity = output_sensitivity(model, rows, ["layer"], forward=forward_batch)["layer"]

    predicted = tail_errors(principal(spectrum, 5), sensitivity)

    outputs, vectors = model.layer(numeric), spectrum.eigenvectors
    for rank in range(6):
        kept = vectors[:, :rank] @ vectors[:, :rank].T
        changed = (outputs - spectrum.mean) @ kept + spectrum.mean
        actual = ((changed - outputs) @ model.weights).square().mean()
        torch.testing.assert_close(predicted[rank], actual, rtol=1e-5, atol=1e-12)


def test_fields_of_a_table_have_each_their_own(model: nn.Module, sensitivity: dict[str, Tensor]) -> None:
    total = torch.zeros(8, 8, dtype=torch.float64)
    for batch in batches():
        codes = model.embedding.lookup(batch.ids).detach().requires_grad_()
        vectors = model.embedding.expand(codes)
        deep = model.mlp(model.direct_inputs(codes, vectors, batch.numeric)).squeeze(1)
        from afm_dist.models.layers import factorization_machine

        logits = model.linear(batch.ids, batch.numeric) + factorization_machine(vectors) + deep
        (gradient,) = torch.autograd.grad(logits.sum(), codes)
        own = gradient[:, 1].double()
        total += own.T @ own / 800

    second = list(model.embedding.names)[1]
    torch.testing.assert_close(sensitivity[f"embedding[{second}]"], total, rtol=1e-4, atol=1e-9)


class Discarding(nn.Module):
    """Calls a layer and does not use what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        self.unused(numeric)
        return self.used(numeric).sum(1)


@pytest.mark.parametrize(("rows", "names"), [(5, ["used", "unused"]), (5, ["unused"]), (0, ["unused"])])
def test_what_the_logit_does_not_depend_on_is_refused(rows: int, names: list[str]) -> None:
    batch = Batch(torch.zeros(rows, 0), torch.randn(rows, 3), torch.zeros(rows))

    with pytest.raises(ValueError, match="unused: the logit does not depend on its output"):
        output_sensitivity(Discarding(), [batch], names, forward=forward_batch)


class Positions(nn.Module):
    """A layer that is called for several positions of a row, all of which count."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        return self.layer(numeric.view(-1, 4, 3)).sum((1, 2))


def test_positions_of_a_row_are_added_up() -> None:
    batch = Batch(torch.zeros(5, 0), torch.randn(5, 12, dtype=torch.float64), torch.zeros(5))

    found = output_sensitivity(Positions(), [batch], ["layer"], forward=forward_batch)

    torch.testing.assert_close(found["layer"], torch.full((2, 2), 4.0, dtype=torch.float64))


def bytes_of(linear: int | None, fields: Sequence[int] | None, number: int = 4) -> int:
    """More or less than the uncompressed model has, by hand: ``mlp.6`` is 16 × 20, ``mlp.0`` 24 wide.

    A number of the table, or of its codes, has so many bytes.
    """
    layer = 0 if linear is None else 4 * (linear * (16 + 20 + 1) - 16 * 20)
    if fields is None:
        return layer
    codes = sum(rank * (number * rows + 4 * (8 + 24)) for rank, rows in zip(fields, (30, 7), strict=True))
    return layer + codes - number * 8 * (30 + 7) + 4 * (2 * 8 - 24 * 2 * 8)


def test_it_chooses_what_an_exhaustive_search_chooses(moments, sensitivity: dict[str, Tensor]) -> None:
    def errors(name: str) -> list[float]:
        """By rank, from the definition."""
        keys = [key for key in moments if key == name or key.startswith(f"{name}[")]
        totals = [0.0] * (moments[keys[0]].width + 1)
        for key in keys:
            spectrum = eigendecompose(moments[key])
            for rank in range(len(totals)):
                for j in range(rank, spectrum.width):
                    u = spectrum.eigenvectors[:, j]
                    totals[rank] += float(spectrum.eigenvalues[j] * (u @ sensitivity[key] @ u))
        return totals

    tails = {name: errors(name) for name in NAMES}
    whole = structure_bytes(CONFIG, Plan())
    budget = whole * 3 // 5
    best = math.inf
    for ranks in itertools.product(*([None, *range(1, len(tails[name]))] for name in NAMES)):
        error = sum(tails[n][rank] for n, rank in zip(NAMES, ranks, strict=True) if rank is not None)
        first, second, table = ranks
        cost = 0 if first is None else 4 * (first * (24 + 20 + 1) - 24 * 20)
        cost += bytes_of(second, None if table is None else (table, table))
        if error < best and whole + cost <= budget:
            best = error

    found = allocate(CONFIG, WHOLE, Statistics(moments, sensitivity), budget)

    assert found.error == pytest.approx(best, rel=1e-9)
    assert found.error == pytest.approx(
        sum(tails[name][rank] for name, rank in ranks_of(found.configs).items() if rank is not None), rel=1e-9
    )


@pytest.mark.parametrize(("rounded", "number"), [((), 4), (("linear",), 4), (("linear", "embedding"), 2)])
def test_each_field_s_rank_is_what_an_exhaustive_search_chooses(
    rounded: tuple[str, ...], number: int, moments, sensitivity
) -> None:
    plan, always = Plan(entries=ENTRIES[1:]), rounding(*rounded)
    names = [field.name for field in FIELDS if field.kind == "categorical"]
    keys = ["mlp.6", *(f"embedding[{name}]" for name in names)]
    tails = [
        tail_errors(principal(eigendecompose(moments[key]), moments[key].width), sensitivity[key]).tolist()
        for key in keys
    ]
    whole = structure_bytes(CONFIG, rounding(*rounded))
    combinations = [
        (
            bytes_of(linear, fields, number),
            (0.0 if linear is None else tails[0][linear]) + tails[1][a] + tails[2][b],
        )
        for linear in (None, *range(1, 9))
        for fields in itertools.product(range(9), range(9))
        for a, b in [fields]
    ]

    for share in (0.5, 0.6, 0.7, 0.8):
        budget = int(whole * share)
        found = allocate(CONFIG, plan, Statistics(moments, sensitivity), budget, always=always, by_field=True)

        best = min(error for cost, error in combinations if whole + cost <= budget)
        assert found.error == pytest.approx(best, rel=1e-9)
        ranks = ranks_of(found.configs)["embedding"]
        fields = [ranks if isinstance(ranks, int) else ranks[name] for name in names]
        assert found.bytes == whole + bytes_of(ranks_of(found.configs)["mlp.6"], fields, number)


@given(
    budgets=st.lists(st.floats(0.3, 1.0), min_size=2, max_size=2).map(sorted),
    times=st.sampled_from([1.0, 7.0]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranks_by_field_never_exceed_a_budget_and_are_never_worse_than_one_for_all(
    moments, sensitivity, budgets: list[float], times: float
) -> None:
    whole, errors = structure_bytes(CONFIG, Plan()), []
    for share in budgets:
        budget = int(whole * share)
        found = allocate(CONFIG, WHOLE, Statistics(moments, sensitivity), budget, by_field=True)
        other = allocate(
            CONFIG,
            WHOLE,
            Statistics(moments, sensitivity),
            budget,
            by_field=True,
            emphasis={"embedding": times},
        )
        assert max(found.bytes, other.bytes) <= budget
        assert found.error <= other.error * (1 + 1e-9)
        errors.append(found.error)
        with contextlib.suppress(OptionError):
            assert found.error <= allocate(CONFIG, WHOLE, Statistics(moments, sensitivity), budget).error
    assert errors == sorted(errors, reverse=True)


def test_what_counts_more_gets_more_bytes(moments, sensitivity) -> None:
    budget = structure_bytes(CONFIG, Plan()) // 2

    def codes(times: float) -> int:
        emphasis = {"embedding": times}
        found = allocate(
            CONFIG, WHOLE, Statistics(moments, sensitivity), budget, by_field=True, emphasis=emphasis
        )
        table = ranks_of(found.configs)["embedding"]
        return sum(table.values()) if table else 2 * (8 + 1)

    assert codes(1e6) > codes(1e-6)


@pytest.mark.parametrize("field_ranks", ["uniform", "each"])
@pytest.mark.parametrize("rounded", [("linear",), ("embedding",), ("linear", "embedding")], ids="-".join)
def test_nothing_is_compressed_where_rounding_is_enough(
    rounded: tuple[str, ...], field_ranks: FieldRanks, moments, sensitivity: dict[str, Tensor]
) -> None:
    budget = structure_bytes(CONFIG, rounding(*rounded))
    numbers = {"linear": 30 + 7, "embedding": 8 * (30 + 7)}
    assert budget == structure_bytes(CONFIG, Plan()) - 2 * sum(numbers[name] for name in rounded)

    found = allocate(
        CONFIG,
        WHOLE,
        Statistics(moments, sensitivity),
        budget,
        always=rounding(*rounded),
        by_field=field_ranks == "each",
    )

    assert ranks_of(found.configs) == dict.fromkeys(NAMES)
    assert (found.bytes, found.error) == (budget, 0)


def test_a_table_of_width_1_is_left_as_it_is() -> None:
    config = replace(CONFIG, hyper_parameters={**CONFIG.hyper_parameters, "embedding_dim": 1})
    torch.manual_seed(0)
    model = config.build().eval()
    moments = collect_moments(model, batches(), NAMES, forward_fn=forward_batch)
    sensitivity = output_sensitivity(model, batches(), NAMES, forward=forward_batch)
    budget = structure_bytes(config, Plan()) * 9 // 10

    assert allocate(config, WHOLE, Statistics(moments, sensitivity), budget).configs["embedding"] is None


def test_no_budget_is_exceeded_and_more_bytes_never_make_it_worse(
    model: nn.Module, moments, sensitivity: dict[str, Tensor]
) -> None:
    whole = structure_bytes(CONFIG, Plan())
    errors = []
    for budget in [*range(whole // 3, whole, whole // 60), whole]:
        try:
            found = allocate(CONFIG, WHOLE, Statistics(moments, sensitivity), budget)
        except OptionError:
            assert not errors
            continue
        assert found.bytes <= budget
        errors.append(found.error)
    assert len(errors) > 10
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


@pytest.mark.parametrize("field_ranks", ["uniform", "each"])
def test_the_bytes_are_those_of_the_compressed_model(
    moments, sensitivity: dict[str, Tensor], field_ranks: FieldRanks
) -> None:
    budget = structure_bytes(CONFIG, Plan()) * 2 // 3
    found = allocate(CONFIG, WHOLE, Statistics(moments, sensitivity), budget, by_field=field_ranks == "each")

    compressed = compress_(deepfm(), found.plan, moments)

    assert sum(t.numel() * t.element_size() for t in compressed.state_dict().values()) == found.bytes


def test_a_budget_below_the_smallest_model_says_what_that_is(moments, sensitivity: dict[str, Tensor]) -> None:
    with pytest.raises(OptionError, match=r"a budget of 1,000 bytes: .* is the least this model can become"):
        allocate(CONFIG, WHOLE, Statistics(moments, sensitivity), 1000)


@pytest.mark.parametrize(
    ("text", "bytes"),
    [
        ("100MB", 100_000_000),
        ("1.5 GiB", 3 << 29),
        ("64kB", 64_000),
        ("64KB", 64_000),
        ("2000000", 2_000_000),
    ],
)
def test_bytes_are_read_with_their_unit(text: str, bytes: int) -> None:
    assert parse_bytes(text) == bytes


@pytest.mark.parametrize("text", ["", "lots", "-5MB", "5 parsecs", "0", "1e6", "5mb"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is no number of bytes; write 100MB"):
        parse_bytes(text)


def test_modules_without_a_rank_are_left_as_they_are(moments) -> None:
    plan = plan_ranks(moments, GivenRanks(ranks={"mlp.3": 4, "mlp.6": None, "embedding": None}))

    assert [(entry.name, entry.config.rank) for entry in plan.entries] == [("mlp.3", 4)]
    with pytest.raises(OptionError, match=r"no rank is given for \S+; there are some for mlp\.3"):
        plan_ranks(moments, GivenRanks(ranks={"mlp.3": 4}))
