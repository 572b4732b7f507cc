"""What was trained is never lost to a report: whatever part of it fails, the model has shipped before."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.errors import DataError, ReportError
from afm_dist.runs.run import SUCCESS
from jobs import compress, train
from jobs.compress_options import Compress
from jobs.train import Train
from tests.jobs.conftest import Compressed, compress_command, train_command

ray = pytest.mark.ray
pytestmark = pytest.mark.timeout(600)

# What fails, and the stage it is part of.
PARTS = {
    "afm_dist.stages.evaluation.evaluate_model": "evaluate",
    "afm_dist.stages.evaluation.measure_throughput": "throughput",
    "afm_dist.stages.evaluation.timing_batch": "throughput",
    "afm_dist.stages.reporting.layers": "report",
    "afm_dist.report.validated": "report",
    "afm_dist.report.writing.to_markdown": "report",
    "afm_dist.report.html.to_html": "report",
    "afm_dist.report.plots.models.throughput": "report",
    "afm_dist.stages.shipping.model_card": "report",
    "afm_dist.stages.shipping.table": "report",
}


def failing(monkeypatch: pytest.MonkeyPatch, part: str, error: Exception) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(part, fail)


def again(output: Path, *stages: str) -> None:
    """Leave a finished run as if it had come to these stages only."""
    for stage in stages:
        shutil.rmtree(output / stage)


def is_usable(output: Path) -> bool:
    checkpoint = str(output / "checkpoint")
    from_pretrained(checkpoint)
    return bool(preprocessing.load(checkpoint).vocabulary) and (output / "checkpoint" / SUCCESS).exists()


def commit_of(output: Path, stage: str) -> str:
    return str(json.loads((output / stage / SUCCESS).read_text())["commit"])


@ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("part", PARTS)
def test_a_compression_ships_before_any_part_of_its_report(
    compressed: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(compressed.output, output)
    again(output, "checkpoint", PARTS[part])
    command = compress_command(compressed.data, compressed.trained, str(output))
    config = tyro.cli(Compress, args=command[1:])

    with monkeypatch.context() as patch:
        failing(patch, part, ZeroDivisionError("division by zero"))
        with pytest.raises(ReportError) as caught:
            compress.main(config)

    assert caught.value.exit_code == 1
    assert "ZeroDivisionError" in str(caught.value)
    assert str(output / "checkpoint") in str(caught.value)
    assert "in fail" in (output / "events.jsonl").read_text()
    assert is_usable(output)
    shipped = commit_of(output, "checkpoint")

    compress.main(config)

    assert commit_of(output, "checkpoint") == shipped
    assert (output / "report" / "report.html").exists()
    shipped_name = json.loads((output / "report" / "report.json").read_text())["shipped"]["name"]
    assert shipped_name in (output / "checkpoint" / "README.md").read_text()
    assert is_usable(output)


@ray
@pytest.mark.usefixtures("local_ray")
def test_a_training_ships_before_it_is_measured(
    compressed: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    shutil.copytree(compressed.trained, output)
    again(output, "checkpoint", "evaluate")
    config = tyro.cli(Train, args=train_command(compressed.data, str(output))[1:])

    with monkeypatch.context() as patch:
        failing(patch, "afm_dist.stages.evaluation.evaluate_model", DataError("the last shard is damaged"))
        with pytest.raises(ReportError, match="the last shard is damaged"):
            train.main(config)

    assert is_usable(output)
    shipped = commit_of(output, "checkpoint")
    train.main(config)
    assert commit_of(output, "checkpoint") == shipped


@ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_sweep_ships_before_its_report(
    compressed: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    config = Compress(
        data=compressed.data,
        checkpoint=f"{compressed.trained}/checkpoint",
        output=str(output),
        sweep=True,
        sweep_ranks="4",
        sweep_dims="2",
        sweep_ratios="1.5",
        finetune_epochs=1,
    )

    with monkeypatch.context() as patch:
        failing(patch, "afm_dist.report.plots.sweep.auc_against_bytes", ValueError("no limits"))
        with pytest.raises(ReportError, match="no limits"):
            compress.main(config)

    assert is_usable(output)
    compress.main(replace(config))
    assert (output / "checkpoint" / "README.md").exists()


def test_a_seed_without_a_report_does_not_keep_the_others_from_being_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[int] = []

    def one_seed(config: Compress) -> None:
        done.append(config.seed)
        if config.seed == 0:
            raise ReportError("no report: a plot")

    monkeypatch.setattr(compress, "compress", one_seed)

    with pytest.raises(ReportError, match="seed 0 is missing"):
        compress.main(Compress(data="somewhere", output=str(tmp_path / "run"), seeds="0,2"))

    assert done == [0, 2]
    assert "a plot" in capsys.readouterr().err
