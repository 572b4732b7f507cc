"""The benchmark of all combinations of methods, ReLU modes, linear terms and distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.compression.targets import target_linears
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError
from afm_dist.evaluation.metrics import auc
from afm_dist.evaluation.score import score_shards
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.layers import LowRankLinear
from afm_dist.models import build_model
from afm_dist.models.deepfm import DeepFM
from afm_dist.statistics.collect import collect_moments
from afm_dist.training.history import EvaluationPoint, History
from afm_dist.training.recipe import Recipe, preset
from afm_dist.training.worker import Candidate
from jobs.benchmarks import ablation
from jobs.benchmarks.ablation import LINEAR_TERMS, METHODS, Ablation, check, measure, page
from jobs.benchmarks.ablation_tables import Combination, Measured, effects_table, grid_table
from jobs.benchmarks.summary import spread
from tests.small_dataset import FIELDS, write_dataset

HYPER = {"embedding_dim": 6, "hidden": (14, 12, 10), "dropout": 0.1}
RANKS = {"mlp_rank": 3, "embedding_dim": 2}
RELU, WEIGHTS = ("none", "plain", "shifted"), (0.0, 0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(tmp_path_factory.mktemp("ablation"))


def save_model(
    location: Path, seed: int, architecture: str = "deepfm", hyper: dict[str, object] = HYPER
) -> str:
    torch.manual_seed(seed)
    model = build_model(architecture, FIELDS, hyper)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    config = ModelConfig(architecture=architecture, hyper_parameters=hyper, fields=FIELDS)
    save_pretrained(model, str(location), config)
    return str(location)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Models of two seeds."""
    folder = tmp_path_factory.mktemp("models")
    return tuple(save_model(folder / str(seed), seed) for seed in (0, 1))


def rows(printed: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:]]


def cube(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[Measured]]:
    """Made-up AUCs of three models, as arrays and as the benchmark has them."""
    generator = np.random.default_rng(seed)
    baseline, control = generator.normal(size=3), generator.normal(size=(3, 2))
    before, after = generator.normal(size=(3, 4, 3, 3)), generator.normal(size=(3, 4, 3, 3, 2))
    cells = {
        (i, j, k): Combination(method, relu, terms)  # type: ignore[arg-type]
        for i, method in enumerate(METHODS)
        for j, relu in enumerate(RELU)
        for k, terms in enumerate(LINEAR_TERMS)
    }
    models = [
        Measured(
            baseline=float(baseline[m]),
            smaller=dict.fromkeys(cells.values(), 2.0 + m),
            before={one: float(before[m][at]) for at, one in cells.items()},
            control={weight: float(control[m, w]) for w, weight in enumerate(WEIGHTS)},
            after={
                weight: {one: float(after[m][at][w]) for at, one in cells.items()}
                for w, weight in enumerate(WEIGHTS)
            },
        )
        for m in range(3)
    ]
    return baseline, control, before, after, models


def test_an_effect_is_the_mean_over_all_other_factors_and_its_deviation_that_of_the_models() -> None:
    baseline, control, before, after, models = cube(0)
    gains = {1: after - control[:, None, None, None], 0: before - baseline[:, None, None, None]}
    aucs = {1: after, 0: before}
    expected = []
    for factor, levels in enumerate((METHODS, RELU, LINEAR_TERMS, ("0", "0.5"))):
        for level, name in enumerate(levels):
            cells = [("method", "ReLU", "linear terms", "distillation")[factor], name]
            for tuned in (1, 0):
                if factor == 3 and not tuned:
                    cells += ["", ""]
                    continue
                others = tuple(axis for axis in range(1, aucs[tuned].ndim) if axis != factor + 1)
                own = gains[tuned].mean(others)[:, level]
                means = aucs[tuned].mean(others)
                cells.append(spread(own.tolist(), sign=True))
                cells.append(spread((means[:, level] - means[:, 0]).tolist(), sign=True) if level else "–")
            expected.append(cells)

    assert rows(effects_table(models)) == expected


def test_a_row_of_the_grid_compares_with_the_same_models_baseline_and_control() -> None:
    baseline, control, before, after, models = cube(1)

    found = rows(grid_table(models))

    assert len(found) == 36
    assert found[10] == [
        *("svd", "none", "absorb", "3.00×"),
        spread((before[:, 1, 0, 1] - baseline).tolist(), sign=True),
        *(spread((after[:, 1, 0, 1, w] - control[:, w]).tolist(), sign=True) for w in range(2)),
    ]


def test_without_fine_tuning_there_is_only_before_and_a_factor_of_one_level_is_none() -> None:
    *_, models = cube(2)
    kept = [
        replace(
            one,
            control={},
            after={},
            before={c: auc for c, auc in one.before.items() if c.linear_terms == "keep"},
        )
        for one in models
    ]

    assert {line[0] for line in rows(effects_table(kept))} == {"method", "ReLU"}
    assert {len(line) for line in rows(effects_table(kept))} == {4}
    assert {len(line) for line in rows(grid_table(kept))} == {5}


def test_each_combination_is_compressed_and_scored_once(
    data: Manifest, sources: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Ablation(
        data=data.location, checkpoints=sources[:1], finetune="off", output=str(tmp_path), **RANKS
    )
    passes: list[list[str]] = []

    def collect(model: torch.nn.Module, batches: object, names: list[str], **options: object) -> object:
        passes.append(list(names))
        return collect_moments(model, batches, names, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ablation, "collect_moments", collect)
    monkeypatch.setattr(ablation, "ACTIVATIONS", ("none", "shifted"))
    measured = measure(config, data, 0)

    baseline = from_pretrained(sources[0])
    first, *behind = target_linears(baseline)
    # Those behind compressed layers for each activation, all others once.
    assert passes == [[first, *behind], *(2 * [[name] for name in behind])]
    assert measured.baseline == auc(score_shards(baseline, data, data.shards("test")))
    assert len(measured.before) == 4 * 2 * 3
    (folder,) = tmp_path.iterdir()
    for one, found in measured.before.items():
        if one.method == "weighted":
            compressed = from_pretrained(str(folder / one.name))
            assert found == auc(score_shards(compressed, data, data.shards("test")))
        assert measured.smaller[one] == size_on_disk(sources[0]) / size_on_disk(str(folder / one.name))
        plan = load_config(str(folder / one.name)).plan
        entries = plan.entries
        assert [entry.config.rank for entry in entries[:3]] == [3, 3, 2]
        assert {entry.config.activation for entry in entries[:2]} == {one.activation}
        expected = {"keep": (None, []), "absorb": ("linear", []), "bfloat16": (None, ["linear"])}
        assert (entries[2].config.absorbs, [entry.name for entry in entries[3:]]) == expected[
            one.linear_terms
        ]
    weights = {name: second_factors(folder / f"{name}-shifted-keep") for name in METHODS}
    # Nothing stands before the first layer.
    assert torch.equal(weights["sequential"][0], weights["afm"][0])
    assert not torch.allclose(weights["sequential"][1], weights["afm"][1])
    assert not torch.allclose(weights["weighted"][0], weights["afm"][0])

    passes.clear()
    monkeypatch.setattr(ablation, "score_shards", None)
    assert measure(config, data, 0) == measured
    assert not passes


def second_factors(checkpoint: Path) -> list[torch.Tensor]:
    model = from_pretrained(str(checkpoint))
    return [module.second.weight for module in model.modules() if isinstance(module, LowRankLinear)]


def test_a_model_that_cannot_absorb_keeps_its_first_order_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeepFM, "absorbs", {})

    every = ablation.combinations(build_model("deepfm", FIELDS, HYPER))

    assert {one.linear_terms for one in every} == {"keep"}
    assert len(every) == 12


def test_all_are_fine_tuned_beside_the_control_and_learn_from_the_uncompressed_model(
    data: Manifest, sources: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: dict[float, tuple[Recipe, list[Candidate]]] = {}

    def fit(
        candidates: list[Candidate], manifest: object, recipe: Recipe, *, folder: str, fine_tuning: bool
    ) -> dict[str, History]:
        assert fine_tuning
        requested[recipe.distill_weight] = recipe, candidates
        for one in candidates:
            save_pretrained(from_pretrained(one.source), one.checkpoint, load_config(one.source))
        return {
            one.name: History(curve=[EvaluationPoint(0, 0, None, 0.7, 0.5)], kept_step=0)
            for one in candidates
        }

    monkeypatch.setattr(ablation, "fit", fit)
    monkeypatch.setattr(ablation, "METHODS", {"svd": METHODS["svd"]})
    monkeypatch.setattr(ablation, "ACTIVATIONS", ("shifted",))
    config = Ablation(data=data.location, checkpoints=sources, batch_size=50, output=str(tmp_path), **RANKS)

    found = measure(config, data, 1)

    for weight in WEIGHTS:
        recipe, candidates = requested[weight]
        assert recipe == preset("default").finetune_embedding.using(
            batch_size=50, seed=1, distill_weight=weight
        )
        assert [one.name for one in candidates] == ["control", *(one.name for one in found.before)]
        assert candidates[0].source == sources[1]
        assert {one.teacher for one in candidates} == {sources[1]}
        # They were not changed here.
        assert (found.control[weight], found.after[weight]) == (found.baseline, found.before)
    assert len({one.output for _, candidates in requested.values() for one in candidates}) == 2 * 4
    assert page(config, [found], "deepfm").count("| svd |") == 3


@pytest.mark.parametrize(
    ("others", "options", "message"),
    [
        ("dcn", {}, r"is a dcn \(.*\), and .* is a deepfm .*; give models of one architecture"),
        ("deeper", {}, r"hidden \[14, 12, 10, 8\].*, and .*hidden \[14, 12, 10\]"),
        ("again", {}, "are the same model; give each once"),
        ("none", {"mlp_rank": 11}, "--mlp-rank 11: rank 11 for mlp.6"),
        ("none", {"checkpoints": ()}, "--checkpoints: give one value at least"),
        ("none", {"distill": ()}, "--distill: give one value at least"),
        ("none", {"distill": (0.5, 0.5)}, "--distill 0.5 0.5: give each weight once"),
        ("none", {"distill": (0.5, 1.0)}, "--distill 1.0: must lie in"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    data: Manifest,
    sources: tuple[str, ...],
    tmp_path: Path,
    others: str,
    options: dict[str, object],
    message: str,
) -> None:
    make: dict[str, Callable[[], list[str]]] = {
        "dcn": lambda: [save_model(tmp_path / "dcn", 0, "dcn", HYPER | {"cross_layers": 2})],
        "deeper": lambda: [save_model(tmp_path / "deeper", 0, hyper=HYPER | {"hidden": (14, 12, 10, 8)})],
        "again": lambda: [save_model(tmp_path / "again", 0)],
        "none": list,
    }
    given = {"data": data.location, "checkpoints": (*sources, *make[others]()), **RANKS, **options}

    with pytest.raises(OptionError, match=message):
        check(Ablation(**given), data)


def test_a_compressed_checkpoint_is_refused_by_name(
    data: Manifest, sources: tuple[str, ...], tmp_path: Path
) -> None:
    config = load_config(sources[1])
    plan = Plan(entries=(PlanEntry("mlp.3", LowRank(factors="afm", rank=2)),))
    save_pretrained(restructure_(config.build(), plan), str(tmp_path / "small"), replace(config, plan=plan))

    with pytest.raises(OptionError, match="small is compressed already; give uncompressed models"):
        check(Ablation(data=data.location, checkpoints=(*sources, str(tmp_path / "small"))), data)
