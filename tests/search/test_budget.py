"""Ranks for a budget, and the checkpoints that come of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.budget import Allocation, Allocator, most_description_bytes
from afm_dist.compression.plan import Plan
from afm_dist.compression.registry import variants
from afm_dist.compression.rewrite import compress_
from afm_dist.compression.variant import FieldRanks, Request
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError, StageError
from afm_dist.evaluation.score import Quality, score_shards
from afm_dist.methods.low_rank.ranks import plan_of
from afm_dist.methods.rounding.config import rounding
from afm_dist.models import ARCHITECTURES
from afm_dist.search.budget import EXPLAINED, PREDICTED, RANKS, BudgetSearch, budget_note
from afm_dist.search.fixed import FixedSearch
from afm_dist.search.rows import PUBLISHED, RowOptions
from afm_dist.search.search import PLANS, counted_moments
from afm_dist.stages.compression import MOMENTS
from afm_dist.stages.searching import SearchResult
from afm_dist.statistics.moments_file import load_moments
from tests.stages.bench import HYPER, Bench, asking, named

ABSORB = RowOptions(linear_terms="absorb")
LARGER = {"embedding_dim": 8, "hidden": [80, 72, 64], "dropout": 0.1}


def target(*, rows: RowOptions = PUBLISHED, **given: Any) -> BudgetSearch:
    request = Request(activation="shifted", absorb=rows.absorb)
    return BudgetSearch(request=request, variants=named("afm,svd"), rows=rows, **given)


def template(model: nn.Module, rows: RowOptions = PUBLISHED) -> Plan:
    return variants()["afm"].template(model, target(bytes=1, rows=rows).request)


def ranks_for(bench: Bench, target: BudgetSearch) -> SearchResult:
    return bench.find(target)


def ranks_in(found: SearchResult) -> dict[str, Any]:
    return {entry.name: entry.config.size for entry in found.plans["afm"].entries}


@pytest.mark.parametrize(
    ("name", "field_ranks"), [*((name, "each") for name in ARCHITECTURES), ("deepfm", "uniform")]
)
def test_a_checkpoint_within_a_budget_is_no_larger(
    name: str, field_ranks: FieldRanks, dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench(name, dataset, tmp_path, LARGER)
    before = size_on_disk(bench.source)
    # Most of DLRM is its bottom MLP, which is not compressed.
    ratio = 1.04 if name == "dlrm" else 1.5

    ranks = ranks_for(bench, target(ratio=ratio, field_ranks=field_ranks))
    _, narrow = bench.compress(ranks)

    for row in ("afm-emb", "svd-emb"):
        after = size_on_disk(narrow.checkpoints[row])
        assert after <= before / ratio
        # What is kept back for names and the plan is little; a rank more would cost about as much.
        assert after > before / ratio - 8000


@pytest.mark.ray
def test_of_a_few_allocations_the_one_with_the_least_validation_loss_is_taken(
    dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    budget = size_on_disk(bench.source) * 2 // 5

    chosen = ranks_for(bench, target(bytes=budget, field_ranks="each", refine=True))

    found = storage.read_json(chosen.stage.file(RANKS), object)
    tried = {one["name"]: one for one in found["tried"]}
    losses = {name: one["validation_log_loss"] for name, one in tried.items()}
    assert len(tried) > 1
    assert found["chosen"] == min(losses, key=losses.__getitem__)
    assert found["ranks"] == tried[found["chosen"]]["ranks"]
    assert ranks_in(chosen) == {name: rank for name, rank in found["ranks"].items() if rank is not None}
    assert tried["as-predicted"]["error"] == min(one["error"] for one in tried.values())
    assert len({json.dumps(one["ranks"]) for one in tried.values()}) == len(tried)
    # The losses are those of the models themselves.
    model = from_pretrained(bench.source)
    plan = template(model)
    moments = load_moments(bench.statistics.result.file(MOMENTS)) | counted_moments(model, dataset, False)
    name, ranks = next((name, one["ranks"]) for name, one in tried.items() if name != "as-predicted")
    compress_(model, plan_of(plan, ranks), moments)
    scored = score_shards(model, dataset, dataset.shards("validation"))
    assert Quality.of(scored).log_loss == pytest.approx(losses[name], abs=1e-9)


@pytest.mark.ray
def test_a_budget_too_small_for_one_dimension_is_met_by_ranks_of_each_field(
    dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    budget = size_on_disk(bench.source) * 2 // 5

    def too_small(self: Allocator, budget: int, *, by_field: bool, **options: Any) -> Allocation:
        if not by_field:
            raise OptionError("the least this model can become is more")
        return allocate(self, budget, by_field=by_field, **options)

    allocate = Allocator.allocate
    monkeypatch.setattr(Allocator, "allocate", too_small)

    chosen = ranks_for(bench, target(bytes=budget, field_ranks="each", refine=True))

    tried = [one["name"] for one in storage.read_json(chosen.stage.file(RANKS), object)["tried"]]
    assert "as-predicted" in tried
    assert "one-dimension" not in tried


def test_scores_outlive_a_result_that_could_not_be_written(
    dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    budget = size_on_disk(bench.source) * 2 // 5
    scored: list[str] = []

    def score(*args: Any, name: str, **options: Any) -> Quality:
        scored.append(name)
        return Quality(500, auc=0.5, log_loss=0.1 * len(scored), calibration=None)

    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("afm_dist.search.scoring.score_split", score)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("afm_dist.search.budget._write", full)
        ranks_for(bench, target(bytes=budget, field_ranks="each", refine=True))
    before = list(scored)

    chosen = ranks_for(bench, target(bytes=budget, field_ranks="each", refine=True))

    assert len(before) > 1
    assert scored == before
    assert sorted(path.name for path in Path(chosen.stage.path).iterdir()) == ["_SUCCESS", PLANS, RANKS]
    note = budget_note(chosen.stage, "afm", first="afm")
    for name, words in EXPLAINED.items():
        assert (f"{name} {words}" in note) == (name in scored)
    assert note.endswith(".") and set(scored) < {PREDICTED, *EXPLAINED}


def test_ranks_by_field_reach_below_a_common_one(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    source = bench.source
    config = load_config(source)
    least = {way: least_of(config, source, rows=PUBLISHED, field_ranks=way) for way in ("uniform", "each")}
    assert least["each"] < least["uniform"]

    ranks = ranks_for(bench, target(bytes=least["each"], field_ranks="each"))
    _, narrow = bench.compress(ranks)

    assert ranks_in(ranks)["embedding"] == {"site": 0, "ad": 0}
    assert all(size_on_disk(narrow.checkpoints[row]) <= ranks.budget for row in ("afm-emb", "svd-emb"))


def test_where_ranks_by_field_do_not_fit_a_common_one_may(dataset: Manifest, tmp_path: Path) -> None:
    """The names of the fields stand in the plan once more; long ones take more than they save here."""
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    config = load_config(bench.source)
    named = replace(
        config, fields=tuple(replace(f, name=f"{f.name} {'as it was shown ' * 40}") for f in config.fields)
    )

    least = {way: least_of(named, None, rows=PUBLISHED, field_ranks=way) for way in ("uniform", "each")}

    assert least["each"] == least["uniform"]


def refusal(bench: Bench, bytes: int) -> str:
    """What is said of a budget, before anything starts and by the stage."""
    source = bench.source
    with pytest.raises(OptionError) as before:
        target(bytes=bytes).check(load_config(source), source)
    with pytest.raises(OptionError) as caught:
        ranks_for(bench, target(bytes=bytes))
    assert str(before.value) == str(caught.value)
    return str(caught.value)


def test_a_budget_counts_the_first_order_weights_that_the_table_absorbs(
    dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    source = bench.source
    config = load_config(source)
    keeping, absorbing = (least_of(config, source, rows=rows) for rows in (PUBLISHED, ABSORB))

    ranks = ranks_for(bench, target(bytes=absorbing, rows=ABSORB))
    _, narrow = bench.compress(ranks, rows=ABSORB)

    # 37 numbers of the table are gone, p and q of two fields with one code are new; the plan says so.
    model = config.build()
    described = [most_description_bytes(config, template(model, rows)) for rows in (PUBLISHED, ABSORB)]
    assert absorbing == keeping - 4 * (37 - 2 * (1 + 1)) + described[1] - described[0]
    assert ranks_in(ranks)["embedding"] == 1
    assert all(size_on_disk(narrow.checkpoints[row]) <= absorbing for row in ("afm-emb", "svd-emb"))


@pytest.mark.parametrize("field_ranks", ["uniform", "each"])
def test_a_budget_buys_more_of_rounded_rows(
    dataset: Manifest, tmp_path: Path, field_ranks: FieldRanks
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    source = bench.source
    rounded = RowOptions(linear_terms="bfloat16", codes="bfloat16")
    config = load_config(source)
    least = {rows: least_of(config, source, rows=rows) for rows in (PUBLISHED, rounded)}
    budget = least[PUBLISHED] + 200

    ranks = ranks_for(bench, target(bytes=budget, rows=rounded, field_ranks=field_ranks))
    _, narrow = bench.compress(ranks, rows=rounded)

    # Of 37 ids two bytes less for the first-order weight and two for the one code; the plan names both.
    plan = template(config.build())
    described = [
        most_description_bytes(config, plan, always=always)
        for always in (Plan(), rounding("embedding", "linear"))
    ]
    named = described[1] - described[0]
    assert least[rounded] == least[PUBLISHED] - 2 * 2 * 37 + named
    assert size_on_disk(narrow.checkpoints["afm-emb"]) <= budget


def least_of(
    config: ModelConfig, source: str | None, *, rows: RowOptions, field_ranks: FieldRanks = "uniform"
) -> int:
    """The smallest budget that can be met."""
    with pytest.raises(OptionError) as caught:
        target(bytes=1, rows=rows, field_ranks=field_ranks).check(config, source)
    return int(re.search(r"bytes: ([\d,]+) is the least", str(caught.value))[1].replace(",", ""))


def test_a_budget_that_cannot_be_met_says_which_can(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)

    least = int(re.search(r"bytes: ([\d,]+) is the least", refusal(bench, 1))[1].replace(",", ""))

    assert set(ranks_in(ranks_for(bench, target(bytes=least))).values()) == {1}
    refusal(bench, least - 1)


def test_a_budget_that_needs_no_compression_says_how_large_the_model_is(
    dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, LARGER)
    before = size_on_disk(bench.source)

    assert f"the uncompressed checkpoint has {before:,}" in refusal(bench, before)
    assert ranks_for(bench, target(bytes=before - 1)).budget == before - 1


def test_a_checkpoint_over_its_budget_is_refused(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)

    found = bench.find(FixedSearch(request=asking(3, 2), variants=named("afm")))

    with pytest.raises(StageError, match="more than the budget of 100"):
        bench.compress(replace(found, budget=100), named("afm"))
