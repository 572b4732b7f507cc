"""A sweep: every rank scored without writing models, and the choice of a few."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.plan import Plan
from afm_dist.compression.variant import Request
from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.errors import OptionError
from afm_dist.evaluation.score import Quality, score_shards
from afm_dist.methods.low_rank.config import Factors, LowRank
from afm_dist.methods.low_rank.factorizations import FACTORIZATIONS
from afm_dist.methods.low_rank.facts import LowRankFacts
from afm_dist.methods.rounding.config import rounding
from afm_dist.models import ARCHITECTURES
from afm_dist.pipelines.step import Given
from afm_dist.search import scoring
from afm_dist.search.grid import MOMENTS, POINTS, SENSITIVITY, GridSearch, choose, swept
from afm_dist.search.rows import PUBLISHED, RowOptions
from afm_dist.search.search import on_meta
from afm_dist.stages.compression import RewriteAtOnce, write_compressed
from afm_dist.stages.evaluation import EvaluateModels, MeasureThroughput
from afm_dist.stages.report_at_once import WriteReportAtOnce
from afm_dist.stages.scoring_points import ScorePoints, points
from afm_dist.stages.searching import SearchPlans, SearchResult
from afm_dist.stages.shipping import Contender, ShippedModel
from afm_dist.stages.shipping import choose as choose_to_ship
from afm_dist.stages.training import FineTune, Models
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.sensitivity_file import load_sensitivity
from afm_dist.statistics.statistics import Statistics
from afm_dist.training.history import EvaluationPoint, History
from afm_dist.training.recipe import Recipe
from jobs.compress_request import parse_numbers
from tests.compression.test_weighted import moments_of
from tests.small_dataset import write_dataset
from tests.stages.bench import HYPER, Bench, named

ABSORB = RowOptions(linear_terms="absorb")


def sweep(
    linear_ranks: Sequence[int] = (),
    embedding_dims: Sequence[int] = (),
    *,
    rows: RowOptions = PUBLISHED,
    **given: Any,
) -> GridSearch:
    request = Request(
        activation="shifted", absorb=rows.absorb, linear_ranks=linear_ranks, embedding_dims=embedding_dims
    )
    return GridSearch(request=request, variants=swept(), rows=rows, **given)


SMALL = sweep((2, 6), (1, 2), ratios=(1.2,), field_ranks="each", most=100)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("sweep")
    return Bench("deepfm", write_dataset(folder / "data"), folder, HYPER)


def tried(bench: Bench, grid: GridSearch = SMALL) -> SearchResult:
    return bench.find(grid)


def written_of(bench: Bench, found: SearchResult) -> Models:
    return RewriteAtOnce(model=bench.model, found=Given(found), known=Given(found.stage), count=1).run(
        bench.context
    )


def measured(bench: Bench) -> Any:
    return ScorePoints(grid=SMALL, model=bench.model, found=Given(tried(bench))).run(bench.context)


@pytest.mark.ray
def test_every_rank_is_scored_as_the_model_that_is_written_then(bench: Bench) -> None:
    found = {point["name"]: point for point in storage.read_json(tried(bench).stage.file(POINTS), object)}
    uniform = [f"{method}-r{rank}-d{dim}" for method in ("afm", "weighted", "svd") for rank in (2, 6, "full")
               for dim in (1, 2, "full") if (rank, dim) != ("full", "full")]  # fmt: skip
    assert [name for name in found if not name.startswith("budget")] == ["baseline", *uniform]

    written = written_of(bench, tried(bench))

    ((name, checkpoint),) = written.checkpoints.items()
    test = {point["name"]: point for point in storage.read_json(measured(bench).file(POINTS), object)}
    assert list(test) == list(found)
    for split, key, scores in (("validation", "validation_auc", found), ("test", "auc", test)):
        scored = score_shards(from_pretrained(checkpoint), bench.dataset, bench.dataset.shards(split))
        assert scores[name][key] == pytest.approx(Quality.of(scored).auc, abs=1e-9)
        assert all((own in scores[name]) == (own == key) for own in ("validation_auc", "auc"))
    # Names and the plan are counted as the longest they can be.
    assert found[name]["bytes"] - 4096 <= size_on_disk(checkpoint) <= found[name]["bytes"]


@pytest.mark.ray
def test_a_budget_s_model_is_no_larger_than_the_uniform_one(bench: Bench) -> None:
    found = {point["name"]: point for point in storage.read_json(tried(bench).stage.file(POINTS), object)}
    budgeted = {name: point for name, point in found.items() if point["method"] == "budget"}
    assert budgeted
    for name, point in budgeted.items():
        assert point["bytes"] <= found[name.replace("budget", "afm")]["bytes"]
        assert {entry.config.label for entry in Plan.from_json(point["plan"]).entries} <= {"weighted"}


@pytest.mark.ray
def test_a_sweep_that_absorbs_first_order_weights_has_smaller_tables(
    bench: Bench, dataset: Manifest, tmp_path: Path
) -> None:
    keeping = {point["name"]: point for point in storage.read_json(tried(bench).stage.file(POINTS), object)}
    other = Bench("deepfm", dataset, tmp_path, HYPER)
    absorbing = sweep((2,), (2,), ratios=(1.2,), rows=ABSORB, most=30)

    stage = other.find(absorbing).stage
    found = {point["name"]: point for point in storage.read_json(stage.file(POINTS), object)}
    written = written_of(other, other.find(absorbing))

    # 37 numbers of the table are gone, p and q of two fields with two codes are new.
    for method in ("afm", "weighted", "svd"):
        name = f"{method}-rfull-d2"
        assert found[name]["parameters"] == keeping[name]["parameters"] - 37 + 2 * (2 + 1)
    for checkpoint in written.checkpoints.values():
        (entry,) = (e for e in load_config(checkpoint).plan.entries if e.name == "embedding")
        assert entry.config.absorbs == "linear"


def test_a_sweep_rounds_rows_whatever_the_rank_of_the_table(
    dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    quality = Quality(500, auc=0.5, log_loss=0.1, calibration=None)
    monkeypatch.setattr(scoring, "score_split", lambda *args, **options: quality)
    rows = RowOptions(linear_terms="bfloat16", codes="bfloat16")
    grid = sweep((2,), (2,), rows=rows, ratios=(1.2,), field_ranks="each", most=30)

    stage = bench.find(grid).stage

    source = bench.source
    moments, sensitivity = load_moments(stage.file(MOMENTS)), load_sensitivity(stage.file(SENSITIVITY))
    first, *compressed = storage.read_json(stage.file(POINTS), object)
    assert Plan.from_json(first["plan"]) == Plan()
    for point in compressed:
        plan, checkpoint = Plan.from_json(point["plan"]), str(tmp_path / point["name"])
        assert plan.entries[-2:] == rounding("embedding", "linear").entries
        write_compressed(source, checkpoint, plan, moments, sensitivity)
        assert size_on_disk(checkpoint) <= point["bytes"]
    assert "afm-r2-dfull" in {point["name"] for point in compressed}


@pytest.mark.ray
def test_an_interrupted_sweep_scores_nothing_twice(
    dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    scored: list[str] = []
    real = scoring.score_split

    def interrupted(*args: Any, name: str, **options: Any) -> Quality:
        if len(scored) == 9:
            raise KeyboardInterrupt
        scored.append(name)
        return real(*args, name=name, **options)

    monkeypatch.setattr(scoring, "score_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tried(bench)
    committed = scored[:]
    scored.clear()
    monkeypatch.setattr(
        scoring, "score_split", lambda *a, name, **o: (scored.append(name), real(*a, name=name, **o))[1]
    )

    names = [point["name"] for point in storage.read_json(tried(bench).stage.file(POINTS), object)]

    assert not set(scored) & set(committed)
    assert set(scored) | set(committed) == set(names)


def point(name: str, size: int, auc: float) -> dict[str, Any]:
    return {"name": name, "method": name.partition("-")[0], "bytes": size, "validation_auc": auc}


BASELINE = point("baseline", 1000, 0.8)


def test_of_each_size_the_best_on_validation_is_chosen() -> None:
    tried = [
        BASELINE,
        point("afm-a", 400, 0.7),
        point("afm-b", 200, 0.75),
        point("budget-b", 190, 0.76),
        point("svd-b", 100, 0.79),
        point("afm-c", 90, 0.6),
    ]
    assert list(choose(tried, [10, 2, 2.4])) == ["budget-b", "afm-c"]


def test_a_size_that_no_model_has_is_left_out_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(choose([BASELINE, point("afm-a", 400, 0.7)], [2, 3])) == ["afm-a"]
    assert "--sweep-ratios 3: no model" in " ".join(capsys.readouterr().err.split())


def test_where_no_model_is_small_enough_the_smallest_is_fine_tuned() -> None:
    assert list(choose([BASELINE, point("afm-a", 400, 0.7), point("afm-b", 500, 0.8)], [3])) == ["afm-a"]


def test_the_front_of_the_report_leaves_out_svd() -> None:
    tried = [BASELINE, point("afm-a", 400, 0.7), point("svd-a", 300, 0.79), point("budget-a", 400, 0.6)]
    test = [{"name": one["name"], "auc": 0.5, "log_loss": 0.6} for one in tried]
    shown = points([{**one, "plan": {}, "validation_log_loss": 0.1} for one in tried], test)
    assert [one["name"] for one in shown if one["front"]] == ["baseline", "afm-a"]
    assert all("plan" not in one and one["log_loss"] == 0.6 for one in shown)


def candidates(**scores: float) -> list[Contender]:
    sizes = {"large": 30, "small": 20, "tiny": 10}
    return [Contender(name=name, validation_auc=auc, bytes=sizes[name]) for name, auc in scores.items()]


def test_the_smallest_model_without_loss_ships_or_else_the_best() -> None:
    good, worse = (
        candidates(large=0.81, small=0.7999, tiny=0.7),
        candidates(large=0.79, small=0.795, tiny=0.7),
    )
    assert choose_to_ship(good, 0.8, "smallest")[0] == "small"
    assert choose_to_ship(worse, 0.8, "smallest")[0] == "small"


def test_the_best_on_validation_ships_and_of_equal_ones_the_smallest() -> None:
    assert choose_to_ship(candidates(large=0.81, small=0.7999, tiny=0.7), 0.8, "best")[0] == "large"
    assert choose_to_ship(candidates(large=0.8, small=0.8, tiny=0.7), 0.8, "best")[0] == "small"


def test_what_does_not_fit_the_budget_stays_behind_and_is_named() -> None:
    name, reason = choose_to_ship(candidates(large=0.81, small=0.79, tiny=0.7), 0.8, "best", 20)
    assert name == "small"
    assert "the best validation AUC of what fits 20 bytes" in reason
    assert "large has 0.81000 in 30 bytes, too many" in reason and "in 10 bytes)" in reason


def test_what_is_named_ships_and_the_page_says_so_with_the_others() -> None:
    name, reason = choose_to_ship(candidates(large=0.81, tiny=0.7), 0.8, "tiny")
    assert name == "tiny"
    assert "--ship tiny" in reason and "large has 0.81000 in 30 bytes" in reason and "-0.1000" in reason
    with pytest.raises(OptionError, match="--ship 'huge': choose from best, smallest, large, tiny"):
        choose_to_ship(candidates(large=0.81, tiny=0.7), 0.8, "huge")


def test_ranks_that_a_model_cannot_have_are_refused_by_option(bench: Bench) -> None:
    config = load_config(bench.source)
    names = [point.name for point in named("afm")[0].points(on_meta(config), sweep().request)]
    assert names == [f"afm-r{r}-d{d}" for r in (1, 2, "full") for d in (1, 2, "full")][:-1]
    names = [point.name for point in named("afm")[0].points(on_meta(config), sweep((4, 2, 4), (1,)).request)]
    assert names == ["afm-r2-d1", "afm-r2-dfull", "afm-r4-d1", "afm-r4-dfull", "afm-rfull-d1"]
    with pytest.raises(OptionError, match=r"--sweep-ranks 9: the ranks lie in 1\.\.8"):
        sweep((2, 9)).of(config)
    with pytest.raises(OptionError, match=r"--sweep-dims 5: the dimensions lie in 1\.\.4"):
        sweep((), (5,)).of(config)


@pytest.mark.parametrize("value", ["", "1;2", "0", "2,-1", "nan", "inf", "1,,2"])
def test_what_is_no_list_of_numbers_is_refused_by_option(value: str) -> None:
    with pytest.raises(OptionError, match="--sweep-ratios"):
        parse_numbers("--sweep-ratios", value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_default_ratios_can_be_reached_by_every_architecture(name: str) -> None:
    fields = tuple(Field(name=f"C{i}", kind="categorical", cardinality=10_000) for i in range(8))
    hyper = {"embedding_dim": 16, "hidden": [400, 400, 400], "dropout": 0.0}
    config = ModelConfig(architecture=name, hyper_parameters=hyper, fields=fields)

    requested = sweep().of(config)

    assert requested.ratios
    assert 1 <= max(requested.ratios) < 50
    with pytest.raises(OptionError, match="--sweep-ratios 50: the smallest model"):
        sweep(ratios=(50,)).of(config)


@pytest.mark.ray
def test_the_report_of_a_sweep_has_every_point_and_what_was_chosen(dataset: Manifest, tmp_path: Path) -> None:
    """Of a model whose tables are not folded, without its fine-tuning."""
    bench = Bench("nfm", dataset, tmp_path, HYPER)
    searched = SearchPlans(search=SMALL, model=bench.model, statistics=bench.statistics)
    searched.run(bench.context)
    found = searched
    rewritten = RewriteAtOnce(model=bench.model, found=found, known=Given(found.result.stage), count=1)
    chosen = rewritten.run(bench.context)
    tuned = FineTune(
        stage="finetune-sweep",
        control="control",
        uncompressed=bench.model,
        compressed=rewritten,
        count=1,
        recipe=Recipe(),
    )
    done = {"control": bench.source, **chosen.checkpoints}
    history = History(curve=[EvaluationPoint(0, 0, None, 0.6, 0.5)], kept_step=0, finished=True)
    tuned._results = (Models(stage=chosen.stage, checkpoints=done, histories=dict.fromkeys(done, history)),)
    (best,) = chosen.checkpoints
    report = WriteReportAtOnce(
        title="a sweep",
        config={},
        baseline=bench.baseline,
        found=searched,
        measured=ScorePoints(grid=SMALL, model=bench.model, found=found),
        rewritten=rewritten,
        tuned=tuned,
        shipped=Given(ShippedModel(stage=chosen.stage, name=best, reason="it is the only one")),
    )
    report.quality = EvaluateModels(subjects=report.subjects, inputs=[rewritten], count=1)
    report.throughput = MeasureThroughput(subjects=report.subjects, inputs=[rewritten], structures=1)
    for step in (report.measured, report.quality, report.throughput):
        step.run(bench.context)

    written = report.run(bench.context)

    content = storage.read_json(written.file("report.json"), object)
    assert len(content["sweep"]) == len(storage.read_json(found.result.stage.file(POINTS), object))
    assert content["shipped"]["name"] == best
    assert {row["name"] for row in content["rows"]} == {"baseline", "control", *chosen.checkpoints}
    assert "Every rank" in storage.read_bytes(written.file("report.html")).decode()


def test_kept_variance_is_that_of_the_factors() -> None:
    """By weighted factors less is kept than by the principal components, of the same rank."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 6, dtype=torch.float64, generator=generator) * torch.tensor([5.0, 4, 3, 2, 1, 1])
    sensitivities = torch.diag(torch.tensor([0.01, 0.01, 0.01, 1, 1, 1], dtype=torch.float64))
    known = Statistics({"layer": moments_of(rows)}, {"layer": sensitivities})
    plain, weighted = (
        LowRankFacts().kept_share("layer", LowRank(factors=method, rank=2), known)
        for method in ("afm", "weighted")
    )
    projection = FACTORIZATIONS["weighted"].projection("layer", 6, 2, known)
    centred = rows - rows.mean(0)
    lost = centred - centred @ (projection.decode @ projection.encode).T
    assert weighted == pytest.approx(1 - float(lost.square().sum() / centred.square().sum()), abs=1e-9)
    assert weighted < plain


@pytest.mark.parametrize("method", ["afm", "weighted"])
def test_of_a_field_of_rank_0_no_variance_is_kept(method: Factors) -> None:
    rows = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = {"table[site]": moments_of(rows), "table[ad]": moments_of(rows)}
    known = Statistics(moments, {key: torch.eye(3, dtype=torch.float64) for key in moments})
    config = LowRank(factors=method, rank=3).with_rank({"site": 0, "ad": 3})

    assert LowRankFacts().kept_share("table[site]", config, known) == 0
    assert LowRankFacts().kept_share("table[ad]", config, known) == pytest.approx(1)
