"""Which ranks a sweep tries, and which models are worth having."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.grid import GridPoint, default_dims, default_ranks, grid
from afm_dist.search.pareto import pareto

WHOLE = Plan(
    entries=(
        PlanEntry("mlp.2", LowRank(factors="afm", rank=1, activation="shifted")),
        PlanEntry("embedding", LowRank(factors="afm", rank=1, folded_into="mlp.0")),
    )
)

POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12)


@given(POINTS)
def test_no_point_of_the_front_is_beaten_and_every_other_is(points: list[tuple[int, int]]) -> None:
    front = pareto([size for size, _ in points], [score for _, score in points])

    chosen = [points[index] for index in front]
    assert chosen == sorted(chosen)
    for size, score in points:
        beaten = any(s <= size and q >= score and (s, q) != (size, score) for s, q in points)
        assert ((size, score) in chosen) is not beaten
    assert len(set(chosen)) == len(chosen)


@given(st.integers(1, 5000))
def test_default_ranks_make_a_layer_smaller(width: int) -> None:
    ranks = default_ranks(width)
    assert ranks == sorted(set(ranks))
    # A square layer has width² weights, its factors 2·rank·width.
    assert all(2 * rank * width < width**2 for rank in ranks) or ranks == [1]
    assert 1 <= len(ranks) <= 6


def test_default_ranks_of_the_paper_s_layers() -> None:
    assert default_ranks(400) == [8, 16, 32, 64, 128]
    assert default_ranks(2000) == [32, 64, 128, 256, 512]
    assert default_dims(16) == [1, 2, 4, 8]
    assert default_dims(1) == []


def test_a_grid_has_every_pair_but_the_uncompressed_model() -> None:
    names = [point.name for point in grid("svd", [8, 4], [2, 2])]
    one = ["r4-d2", "r4-dfull", "r8-d2", "r8-dfull", "rfull-d2"]
    assert names == [f"svd-{point}" for point in one]


def test_the_plan_of_a_point_has_its_ranks() -> None:
    def ranks(rank: int | None, dim: int | None) -> list[tuple[str, str, int]]:
        point = GridPoint(method="svd", linear_rank=rank, embedding_dim=dim)
        plan = point.plan(WHOLE, table="embedding")
        return [(entry.name, entry.config.factors, entry.config.rank) for entry in plan.entries]

    assert ranks(8, 2) == [("mlp.2", "svd", 8), ("embedding", "svd", 2)]
    assert ranks(None, 2) == [("embedding", "svd", 2)]
    assert ranks(8, None) == [("mlp.2", "svd", 8)]
