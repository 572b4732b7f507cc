from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afm_dist.checkpoint import ModelConfig, from_pretrained, save_pretrained
from afm_dist.errors import DataError
from afm_dist.models import build_model
from afm_dist.training.recipe import Recipe, preset
from jobs.benchmarks.finetuning import UNTUNED, WAYS, Sample, Start, _drawn_anew, table
from tests.small_dataset import FIELDS, write_dataset

HYPER = {"embedding_dim": 4, "hidden": (16, 8)}
MODEL = ModelConfig(architecture="deepfm", hyper_parameters=HYPER, fields=FIELDS)


def sample(way: str, validation: float, *, start: str = "run 0", model: str = "deepfm, afm-emb") -> Sample:
    return Sample(
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
    assert row["last state − not, validation"] == "-0.0100 ± 0.0141"


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

    drawn = from_pretrained(_drawn_anew(source, str(tmp_path / "drawn"), seed=1)).state_dict()

    before = from_pretrained(source).state_dict()
    assert {name for name in before if not torch.equal(before[name], drawn[name])} == {"embedding.weight"}
