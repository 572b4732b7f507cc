from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.order import TrainingOrder
from afm_dist.models import build_model
from afm_dist.training.loop import History, Worker, train, train_step
from afm_dist.training.optimizer import LazyAdam
from afm_dist.training.recipe import Recipe
from tests.small_dataset import write_dataset

# 1000 rows in batches of 333: the last one has a single row, so the second of two workers has none.
RECIPE = Recipe(epochs=2, batch_size=333, learning_rate=1e-2, l2=1e-3, patience=100)


def _ignore(*arguments: Any) -> None:
    del arguments


def _model(manifest: Manifest) -> nn.Module:
    torch.manual_seed(0)
    return build_model("deepfm", manifest.fields, {"embedding_dim": 4, "hidden": (8, 8), "dropout": 0.0})


def _run(rank: int, world_size: int, port: int, data: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    manifest = Manifest.load(data)
    model = _model(manifest)
    train(
        model,
        manifest,
        RECIPE,
        worker=Worker(rank, world_size),
        history=History(),
        optimizer_state=None,
        step=0,
        keep=_ignore,
        save=_ignore,
        progress=_ignore,
        evaluate_first=False,
    )
    torch.save(model.state_dict(), Path(output, f"{rank}.pt"))
    dist.destroy_process_group()


def _trained_alone(manifest: Manifest, world_size: int) -> nn.Module:
    """One process stepping over the batches of all workers put together."""
    model = _model(manifest)
    optimizer = LazyAdam(model, RECIPE.learning_rate, RECIPE.l2)
    ranks = [
        TrainingOrder(
            manifest=manifest,
            batch_size=RECIPE.batch_size,
            seed=RECIPE.seed,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for epoch in range(RECIPE.epochs):
        for parts in zip(*(rank.batches(epoch) for rank in ranks), strict=True):
            batch = Batch.concatenate(parts)
            train_step(model, optimizer, batch, len(batch))
    return model


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_two_workers_train_the_model_that_one_trains_on_their_batches(tmp_path: Path, free_port: int) -> None:
    manifest = write_dataset(tmp_path / "data")
    torch.multiprocessing.spawn(_run, (2, free_port, manifest.location, str(tmp_path)), nprocs=2)
    alone = _trained_alone(manifest, 2).state_dict()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-5, msg=name)
