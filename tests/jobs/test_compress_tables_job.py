"""Tables compressed without being in memory, by the command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.manifest import Manifest
from afm_dist.methods.low_rank.ranks import FixedRank, plan_ranks
from afm_dist.models import build_model
from afm_dist.statistics.from_counts import moments_from_counts
from tests.jobs.commands import fail, run_warm
from tests.small_dataset import FIELDS, write_dataset

SHAPE = {"embedding_dim": 8, "hidden": (8, 8)}


@dataclass(frozen=True)
class Given:
    """A dataset, and a model with random weights."""

    data: Manifest
    checkpoint: str
    config: ModelConfig

    def command(self, output: Path, dim: int = 2) -> list[str]:
        """Compress its tables."""
        return [
            "jobs/compress_tables.py",
            *("--data", self.data.location, "--checkpoint", self.checkpoint),
            *("--embedding-dim", str(dim), "--output", str(output)),
        ]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    torch.manual_seed(0)
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPE, fields=FIELDS)
    save_pretrained(build_model("deepfm", FIELDS, SHAPE), str(tmp_path / "model"), config)
    return Given(write_dataset(tmp_path / "data"), str(tmp_path / "model"), config)


@pytest.mark.ray
def test_the_command_gives_the_bytes_of_the_library_and_is_done_once(given: Given, tmp_path: Path) -> None:
    result = run_warm(*given.command(tmp_path / "run"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 fields to 2 dimensions" in " ".join(result.stdout.split())

    model = from_pretrained(given.checkpoint)
    moments = moments_from_counts(model, given.data)
    plan = plan_ranks(moments, FixedRank(rank=2), folded_into="mlp.0")
    compress_(model, plan, moments)
    save_pretrained(model, str(tmp_path / "library"), replace(given.config, plan=plan))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "run" / "checkpoint" / name).read_bytes() == (
            tmp_path / "library" / name
        ).read_bytes()

    again = run_warm(*given.command(tmp_path / "run"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("up to date") == 2


@pytest.mark.ray
@pytest.mark.parametrize("dim", [8])
def test_a_dimension_that_compresses_nothing_is_refused(given: Given, tmp_path: Path, dim: int) -> None:
    message = fail(*given.command(tmp_path / "run", dim), code=2)

    assert f"--embedding-dim {dim}" in message
    assert "from 1 to 7" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_a_dry_run_says_what_it_takes_and_starts_nothing(given: Given, tmp_path: Path) -> None:
    result = run_warm(*given.command(tmp_path / "run"), "--dry-run")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "memory of a node for a task" in result.stdout
    assert not (tmp_path / "run").exists()
