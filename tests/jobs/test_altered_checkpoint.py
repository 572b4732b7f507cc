"""One flipped bit in a checkpoint: every job that loads it refuses it by name, before it does anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_prep.protocol import Protocol
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.in_this_process import in_this_process
from tests.data_prep.scoring.models import Trained, train
from tests.jobs.commands import fail
from tests.jobs.conftest import write_clicks


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model of random weights for a CSV of clicks."""
    folder = tmp_path_factory.mktemp("trained")
    write_clicks(folder / "clicks.csv", 400)
    with in_this_process():
        source = TabularSource([str(folder / "clicks.csv")], ColumnOptions(label="click"))
        return train(folder / "clicks.csv", source, Protocol(validation_share=0.2, test_share=0.2), folder)


@pytest.fixture(params=["model.safetensors", "config.json", "preprocessing/manifest.json"])
def altered(trained: Trained, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The checkpoint with one bit flipped in a file; which one."""
    shutil.copytree(trained.checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / request.param
    content = bytearray(path.read_bytes())
    if path.suffix == ".json":
        # Another cardinality: still valid JSON.
        content[content.index(b'"cardinality": ') + len(b'"cardinality": ')] ^= 1
    else:
        content[-100] ^= 64
    path.write_bytes(content)
    return path


JOBS = {
    "evaluate": ("jobs/evaluate.py", "--data", "{data}", "--checkpoint", "{checkpoint}"),
    "compress": (
        *("jobs/compress.py", "--data", "{data}", "--checkpoint", "{checkpoint}", "--output", "{output}"),
        *("--mlp-rank", "4", "--embedding-dim", "2"),
    ),
    "compress_tables": (
        *("jobs/compress_tables.py", "--data", "{data}", "--checkpoint", "{checkpoint}"),
        *("--output", "{output}", "--embedding-dim", "2"),
    ),
    "export": (
        *("jobs/export.py", "--format", "torch-export", "--checkpoint", "{checkpoint}"),
        *("--output", "{output}.pt2"),
    ),
    "predict": (
        *("jobs/predict.py", "--checkpoint", "{checkpoint}", "--input", "{log}"),
        *("--output", "{output}.parquet"),
    ),
}


@pytest.mark.ray
@pytest.mark.parametrize("job", JOBS)
def test_every_job_refuses_it_by_name(trained: Trained, altered: Path, tmp_path: Path, job: str) -> None:
    if altered.name == "manifest.json" and job not in ("export", "predict"):
        pytest.skip("is not read")
    places = {
        "data": trained.data.location,
        "checkpoint": str(tmp_path / "checkpoint"),
        "output": str(tmp_path / "output"),
        "log": str(trained.log),
    }

    message = fail(*(word.format(**places) for word in JOBS[job]), code=1)

    assert f"{altered}: " in message
    assert "altered" in message or "is damaged" in message
    assert not list(tmp_path.glob("output.*"))
    assert not (tmp_path / "output" / "checkpoint" / "config.json").exists()
