"""A split with one label, or without rows: refused before anything is started, or measured to the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from afm_dist.models import build_model
from jobs import compress, evaluate, train
from jobs.compress_options import Compress
from jobs.evaluate import Evaluate
from jobs.train import Train
from tests.small_dataset import relabelled

HYPER = {"embedding_dim": 8, "hidden": [64, 48, 32], "dropout": 0.0}


@pytest.fixture
def checkpoint(dataset: Manifest, tmp_path: Path) -> str:
    """An untrained model."""
    torch.manual_seed(0)
    config = ModelConfig(architecture="deepfm", hyper_parameters=HYPER, fields=dataset.fields)
    location = str(tmp_path / "model")
    save_pretrained(build_model("deepfm", dataset.fields, HYPER), location, config)
    return location


def without_rows(dataset: Manifest, split: str) -> Manifest:
    changed = replace(dataset, splits={**dataset.splits, split: ()})
    changed.save()
    return changed


def without_clicks(dataset: Manifest, split: str) -> Manifest:
    return relabelled(dataset, split, 0)


KINDS = {"no rows": without_rows, "only label 0": without_clicks}
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "ranks": {"mlp_rank": 2, "embedding_dim": 2},
    "budget": {"target_ratio": 1.3},
    "sweep": {"sweep": True, "sweep_ranks": "4", "sweep_dims": "2", "sweep_ratios": "1.2"},
    "seeds": {"mlp_rank": 2, "embedding_dim": 2, "seeds": "0,1"},
}


def training(data: str, output: str, **options: Any) -> Callable[[], None]:
    config = Train(data=data, output=output, embedding_dim=4, hidden=(12, 10, 8), epochs=1, **options)
    return lambda: train.main(config)


def compression(kind: str, data: str, checkpoint: str, output: str, **options: Any) -> Callable[[], None]:
    config = Compress(
        data=data,
        checkpoint=checkpoint,
        output=output,
        finetune_epochs=1,
        **COMPRESSIONS[kind],
        **options,
    )
    return lambda: compress.main(config)


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_from_and_chosen_by_needs_both_labels(
    dataset: Manifest, checkpoint: str, tmp_path: Path, kind: str, split: str, dry_run: bool
) -> None:
    data, output = KINDS[kind](dataset, split).location, tmp_path / "run"
    jobs = [training(data, str(output), dry_run=dry_run)]
    jobs += [compression(name, data, checkpoint, str(output), dry_run=dry_run) for name in COMPRESSIONS]
    for job in jobs:
        with pytest.raises(DataError, match=rf"the {split} split has {kind}.*--validation-from"):
            job()
    assert not (output / "checkpoint").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_says_the_same_of_what_is_only_measured(
    dataset: Manifest,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    data, output = KINDS[kind](dataset, "test").location, tmp_path / "run"
    jobs = [training(data, str(output), dry_run=True)]
    jobs += [compression(name, data, checkpoint, str(output), dry_run=True) for name in COMPRESSIONS]
    jobs += [lambda: evaluate.main(Evaluate(data=data, checkpoint=checkpoint, dry_run=True))]
    for job in jobs:
        job()
        printed = capsys.readouterr()
        assert f"the test split has {kind}" in printed.err
        assert "can hold this" in printed.out
    assert not output.exists()


def results(output: Path, *parts: str) -> list[dict[str, Any]]:
    content = json.loads(output.joinpath(*parts).read_text())
    return content["rows"] if isinstance(content, dict) else content


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_is_measured_to_the_end(
    dataset: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    data, output = KINDS[kind](dataset, "test").location, tmp_path / "run"

    training(data, str(output))()

    printed = capsys.readouterr()
    assert f"the test split has {kind}" in printed.err
    assert "AUC undefined" in printed.out
    (row,) = results(output, "evaluate", "results.json")
    assert row["auc"] is None
    assert (row["log_loss"] is None) == (kind == "no rows")
    shipped = str(output / "checkpoint")
    from_pretrained(shipped)

    figures = tmp_path / "figures.json"
    evaluate.main(Evaluate(data=data, checkpoint=shipped, json=str(figures)))

    measured = json.loads(figures.read_text())
    assert measured["auc"] is None and measured["log_loss"] == row["log_loss"]
    assert measured["rows_per_second"] > 0
    assert "AUC         undefined" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("compressed_by", "kind"),
    [
        ("ranks", "only label 0"),
        *(
            pytest.param(name, kind, marks=pytest.mark.slow)
            for name in COMPRESSIONS
            for kind in KINDS
            if (name, kind) != ("ranks", "only label 0")
        ),
    ],
)
def test_a_compression_is_measured_to_the_end(
    dataset: Manifest,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    compressed_by: str,
    kind: str,
) -> None:
    data, output = KINDS[kind](dataset, "test").location, tmp_path / "run"

    compression(compressed_by, data, checkpoint, str(output))()

    printed = capsys.readouterr()
    assert f"the test split has {kind}" in printed.err
    assert "undefined" in printed.out
    rows = results(output, "report", "report.json")
    assert rows and all(row["auc"] is None for row in rows)
    assert all((row["log_loss"] is None) == (kind == "no rows") for row in rows)
    assert "AUC undefined" in (output / "report" / "report.md").read_text()
    shipped = output / "seed-0" if compressed_by == "seeds" else output
    from_pretrained(str(shipped / "checkpoint"))
    assert "AUC undefined" in (shipped / "checkpoint" / "README.md").read_text()
