"""Ranks for a budget, and the checkpoints that come of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from afm_dist.checkpoint import ModelConfig, load_config, size_on_disk
from afm_dist.compression.ranks import FixedRank
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError, StageError
from afm_dist.models import ARCHITECTURES
from afm_dist.stages.budget import Ranks, Target, check_target, choose_ranks
from tests.stages.bench import HYPER, Bench

LARGER = {"embedding_dim": 8, "hidden": [80, 72, 64], "dropout": 0.1}


def target(*, bytes: int | None = None, ratio: float | None = None, absorb: bool = False) -> Target:
    return Target(bytes=bytes, ratio=ratio, activation="shifted", kappa=2.0, absorb=absorb)


def ranks_for(bench: Bench, target: Target) -> Ranks:
    return choose_ranks(bench.run, bench.data, bench.dataset, bench.baseline, bench.statistics, target)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_within_a_budget_is_no_larger(name: str, dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench(name, dataset, tmp_path, LARGER)
    before = size_on_disk(bench.baseline.checkpoints["baseline"])
    # Most of DLRM is its bottom MLP, which is not compressed.
    ratio = 1.04 if name == "dlrm" else 1.5

    ranks = ranks_for(bench, target(ratio=ratio))
    _, narrow = bench.compress(ranks.linears, ranks.tables, budget=ranks.budget)

    for row in ("afm-emb", "svd-emb"):
        after = size_on_disk(narrow.checkpoints[row])
        assert after <= before / ratio
        # What is kept back for names and the plan is little; a rank more would cost about as much.
        assert after > before / ratio - 8000


def refusal(bench: Bench, bytes: int) -> str:
    """What is said of a budget, before anything starts and by the stage."""
    source = bench.baseline.checkpoints["baseline"]
    with pytest.raises(OptionError) as before:
        check_target(load_config(source), source, target(bytes=bytes))
    with pytest.raises(OptionError) as caught:
        ranks_for(bench, target(bytes=bytes))
    assert str(before.value) == str(caught.value)
    return str(caught.value)


def test_a_budget_counts_the_first_order_weights_that_the_table_absorbs(
    dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    source = bench.baseline.checkpoints["baseline"]
    config = load_config(source)
    keeping, absorbing = (least_of(config, source, absorb=absorb) for absorb in (False, True))

    ranks = ranks_for(bench, target(bytes=absorbing, absorb=True))
    _, narrow = bench.compress(ranks.linears, ranks.tables, budget=ranks.budget, absorb=True)

    # 37 numbers of the table are gone, p and q of two fields with one code are new.
    assert absorbing == keeping - 4 * (37 - 2 * (1 + 1))
    assert ranks.tables.ranks == {"embedding": 1}
    assert all(size_on_disk(narrow.checkpoints[row]) <= absorbing for row in ("afm-emb", "svd-emb"))


def least_of(config: ModelConfig, source: str, *, absorb: bool) -> int:
    """The smallest budget that can be met."""
    with pytest.raises(OptionError) as caught:
        check_target(config, source, target(bytes=1, absorb=absorb))
    return int(re.search(r"bytes: ([\d,]+) is the least", str(caught.value))[1].replace(",", ""))


def test_a_budget_that_cannot_be_met_says_which_can(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)

    least = int(re.search(r"bytes: ([\d,]+) is the least", refusal(bench, 1))[1].replace(",", ""))

    assert set(ranks_for(bench, target(bytes=least)).linears.ranks.values()) == {1}
    refusal(bench, least - 1)


def test_a_budget_that_needs_no_compression_says_how_large_the_model_is(
    dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    before = size_on_disk(bench.baseline.checkpoints["baseline"])

    assert f"the uncompressed checkpoint has {before:,}" in refusal(bench, before)
    assert ranks_for(bench, target(bytes=before - 1)).budget == before - 1


def test_a_checkpoint_over_its_budget_is_refused(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)

    with pytest.raises(StageError, match="more than the budget of 100"):
        bench.compress(FixedRank(rank=3), FixedRank(rank=2), budget=100)
