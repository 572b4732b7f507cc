from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.errors import DataError
from afm_dist.models import build_model
from afm_dist.training.history import EvaluationPoint, History
from afm_dist.training.recipe import Recipe, preset
from afm_dist.training.worker import Candidate
from jobs.benchmarks import finetuning
from jobs.benchmarks.finetuning import UNTUNED, WAYS, FineTunedSample, Start, _redrawn, measure, table
from tests.small_dataset import FIELDS, write_dataset

HYPER = {"embedding_dim": 4, "hidden": (16, 8)}
MODEL = ModelConfig(architecture="deepfm", hyper_parameters=HYPER, fields=FIELDS)


def sample(
    way: str, validation: float, *, start: str = "run 0", model: str = "deepfm, afm-emb"
) -> FineTunedSample:
    return FineTunedSample(
        data="log",
        model=model,
        way=way,
        start=start,
        validation=validation,
        last=validation - 0.02,
        test=validation - 0.01,
    )


def rows(printed: str) -> dict[str, dict[str, str]]:
    """The rows of a table, by way of fine-tuning."""
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith("|")
    )
    return {line[2]: dict(zip(head, line, strict=True)) for line in lines}


def test_differences_are_to_the_same_start_without_fine_tuning() -> None:
    samples = [
        sample(UNTUNED, 0.70),
        sample(UNTUNED, 0.80, start="run 1"),
        sample("default", 0.72),
        sample("default", 0.80, start="run 1"),
    ]

    row = rows(table(samples))["**default**"]

    assert (row["n"], row["validation AUC"]) == ("2", "0.7600 ± 0.0566")
    assert row["validation − not"] == row["test − not"] == "+0.0100 ± 0.0141"
    assert row["last evaluation − not, validation"] == "-0.0100 ± 0.0141"


def test_validation_chooses_for_each_model_and_not_fine_tuning_competes() -> None:
    other = "deepfm, control"
    samples = [
        *(sample(UNTUNED, 0.70), sample("default", 0.69), sample("averaged", 0.70)),
        *(sample(UNTUNED, 0.70, model=other), sample("averaged", 0.71, model=other)),
    ]

    printed = table(samples)

    assert f"Chosen by validation for log, deepfm, afm-emb: {UNTUNED}." in printed
    assert f"Chosen by validation for log, {other}: averaged." in printed


def test_a_run_that_is_given_twice_is_refused() -> None:
    with pytest.raises(DataError, match="log, deepfm, afm-emb: two samples of run 0"):
        table([sample(UNTUNED, 0.7), sample(UNTUNED, 0.7)])


def test_every_way_changes_the_recipe_in_what_its_name_says() -> None:
    default = Recipe(learning_rate=3e-4, batch_size=2000)
    recipes = {way.name: way.recipe(default) for way in WAYS}

    assert recipes["default"] == recipes["tables drawn anew"] == default
    assert recipes["smaller steps (1/3)"] == replace(default, learning_rate=3e-4 / 3)
    assert recipes["frozen tables"] == replace(default, trained="dense")
    assert len({way.slug for way in WAYS}) == len(WAYS)
    assert recipes["distilled, w 0.5, T 2"] == replace(default, distill_weight=0.5, distill_temperature=2)


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., str]:
    """What of a run of jobs/compress.py is read."""

    def make(**options: object) -> str:
        write_dataset(tmp_path / "data")
        for place in ("finetune-mlp/control-mlp/checkpoint", "rewrite-embedding/afm-emb"):
            torch.manual_seed(0)
            save_pretrained(build_model("deepfm", FIELDS, HYPER), str(tmp_path / "run" / place), MODEL)
        config = {"job": "compress", "data": str(tmp_path / "data"), "resources": {}, "gone": 1, **options}
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        return str(tmp_path / "run")

    return make


def test_a_run_is_gone_on_with_from_before_its_second_round(finished: Callable[..., str]) -> None:
    run = finished(finetune_learning_rate=0.5)

    start = Start.of(run)

    assert start.recipe == preset("default").finetune_embedding.using(learning_rate=0.5)
    assert start.sources["control"] == start.teacher == f"{run}/finetune-mlp/control-mlp/checkpoint"
    assert start.sources["afm-emb"] == f"{run}/rewrite-embedding/afm-emb"
    assert start.architecture == "deepfm"


def test_a_run_that_is_not_finished_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"afm-emb: no checkpoint; .* is no finished run"):
        Start.of(str(tmp_path))


def test_tables_drawn_anew_leave_the_dense_weights(finished: Callable[..., str], tmp_path: Path) -> None:
    source = Start.of(finished()).teacher

    drawn = from_pretrained(_redrawn(source, str(tmp_path / "drawn"), seed=1)).state_dict()

    before = from_pretrained(source).state_dict()
    assert {name for name in before if not torch.equal(before[name], drawn[name])} == {"embedding.weight"}


def test_each_way_is_measured_with_its_recipe_its_start_and_the_teacher(
    finished: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Start.of(finished())
    requested: dict[str, tuple[Recipe, Candidate, str]] = {}

    def fit(
        candidates: list[Candidate], manifest: object, recipe: Recipe, *, folder: str, fine_tuning: bool
    ) -> dict[str, History]:
        assert fine_tuning
        requested.update({one.name: (recipe, one, folder) for one in candidates})
        curve = [
            EvaluationPoint(0, 0, None, 0.70, 0.5),
            EvaluationPoint(9, 90, 0.5, 0.75, 0.5),
            EvaluationPoint(18, 180, 0.5, 0.72, 0.5),
        ]
        return {one.name: History(curve=curve, kept_step=9, finished=True) for one in candidates}

    monkeypatch.setattr(finetuning, "fit", fit)
    monkeypatch.setattr(finetuning, "measure_quality", lambda subject, *_: {"auc": 0.6})

    samples = measure(start, 3, str(tmp_path / "out"))

    assert {(one.model.split(", ")[1], one.way) for one in samples} == {
        (model, way) for model in start.sources for way in (UNTUNED, *(way.name for way in WAYS))
    }
    for one in samples:
        assert (one.validation, one.last) == ((0.70, 0.70) if one.way == UNTUNED else (0.75, 0.72))
    for way in WAYS:
        for model, source in start.sources.items():
            recipe, candidate, _ = requested[f"{model}-{way.slug}"]
            assert recipe == way.recipe(start.recipe.using(seed=3))
            assert candidate.teacher == start.teacher
            assert (candidate.source == source) is not way.redrawn


def test_what_was_measured_of_other_data_is_not_taken_for_this(
    finished: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Start.of(finished())
    folders: list[set[str]] = []

    def fit(candidates: list[Candidate], *_: object, folder: str, **__: object) -> dict[str, History]:
        folders[-1].add(folder)
        curve = [EvaluationPoint(0, 0, None, 0.7, 0.5)]
        return {one.name: History(curve=curve, kept_step=0, finished=True) for one in candidates}

    monkeypatch.setattr(finetuning, "fit", fit)
    monkeypatch.setattr(finetuning, "measure_quality", lambda subject, *_: {"auc": 0.6})
    other = replace(start, manifest=write_dataset(tmp_path / "other", seed=7))
    for one in (start, start, other):
        folders.append(set())
        measure(one, 0, str(tmp_path / "out"))

    assert folders[0] == folders[1]
    assert not folders[0] & folders[2]
