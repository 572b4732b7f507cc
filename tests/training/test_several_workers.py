"""Two and three processes under gloo, with the collectives that NCCL has too."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.order import TrainingOrder
from afm_dist.models import build_model
from afm_dist.training.exchange.exact import ExactSums
from afm_dist.training.exchange.exchange import StepTotals
from afm_dist.training.gradients import sum_rows
from afm_dist.training.loop import Trainer, Worker
from afm_dist.training.optimizer import SplitOptimizer
from afm_dist.training.recipe import Recipe
from afm_dist.training.state import State
from afm_dist.training.step import train_step
from tests.small_dataset import write_dataset

# 1000 rows in batches of 333: the last one has a single row, so the second of two workers has none.
RECIPE = Recipe(epochs=2, batch_size=333, learning_rate=1e-2, l2=1e-3, evaluations_per_epoch=1)
WORKERS = 3
FINE_TUNING = {"trained": "dense", "average": True, "distill_weight": 0.5, "distill_temperature": 2.0}
OTHER = {"reset_tables": True, "table_optimizer": "adagrad", "plateau_factor": 0.5, "clip_norm": 0.1}


def _model(manifest: Manifest, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("deepfm", manifest.fields, {"embedding_dim": 4, "hidden": (8, 8), "dropout": 0.0})


@dataclass
class _Noted:
    """What a training calls: it asks for a checkpoint once."""

    due_before: int
    saved: list[int] = field(default_factory=list)
    averages: list[dict[str, Tensor]] = field(default_factory=lambda: [{}])
    steps: Iterator[int] = field(default_factory=itertools.count)

    def keep(self, model: nn.Module, step: int) -> None:
        pass

    def progress(self, rows: int) -> None:
        pass

    def checkpoint_due(self) -> bool:
        return next(self.steps) == self.due_before

    def save(self, state: State) -> None:
        self.saved.append(state.step)
        self.averages.append({name: mean.clone() for name, mean in state.average.items()})


def _train(worker: Worker, manifest: Manifest, **changes: Any) -> dict[str, Any]:
    """The trained weights; when it was saved, of which each worker asked for one."""
    model, noted = _model(manifest), _Noted(due_before=4 + worker.rank)
    trainer = Trainer(
        model, manifest, RECIPE.using(**changes), worker=worker, teacher=_model(manifest, seed=1)
    )
    history = trainer.run(noted)
    return {
        "weights": model.state_dict(),
        "saved": noted.saved,
        "losses": [point.train_loss for point in history.curve],
        "average": noted.averages[-1],
        "bytes": history.bytes_sent,
    }


class _Tables(nn.Module):
    """Two tables and a dense weight, with gradients that differ by rank; the last rank has no rows."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(rank)
        rows = 0 if rank == WORKERS - 1 else 40 + rank
        for name, width in (("wide", 5), ("narrow", 1)):
            ids = torch.randint(0, 30, (1, rows), generator=generator)
            parameter = nn.Parameter(torch.zeros(30, width))
            values = torch.randn(rows, width, generator=generator)
            parameter.grad = torch.sparse_coo_tensor(ids, values, (30, width), check_invariants=False)
            self.register_parameter(name, parameter)
        self.dense = nn.Parameter(torch.zeros(3, 2))
        self.dense.grad = torch.randn(3, 2, generator=generator)


def _sum(worker: Worker) -> dict[str, Any]:
    tables = _Tables(worker.rank)
    theirs = [parameter.grad.clone() for parameter in tables.parameters()]
    for gradient in theirs:
        dist.all_reduce(gradient)
    for parameter in (tables.wide, tables.narrow):
        parameter.grad = sum_rows(parameter.grad)
    with _noted_collectives() as shapes:
        loss = torch.tensor(0.5 + worker.rank, dtype=torch.float64)
        exchange = ExactSums(worker.world_size)
        taken = exchange.exchange(tables, StepTotals(loss, worker.rank == 1))
    return {
        "ours": [parameter.grad.to_dense() for parameter in tables.parameters()],
        "theirs": [gradient.to_dense() for gradient in theirs],
        "shapes": shapes,
        "loss": taken.loss,
        "checkpoint": taken.checkpoint,
        "bytes": exchange.bytes_sent,
    }


@contextmanager
def _noted_collectives() -> Iterator[list[tuple[str, tuple[int, ...], int]]]:
    """Which collectives are called with what; NCCL takes dense tensors of one shape on all ranks."""
    noted: list[tuple[str, tuple[int, ...], int]] = []

    def noting(name: str, call: Any, tensor_at: int) -> Any:
        def noted_call(*arguments: Any) -> None:
            tensor: Tensor = arguments[tensor_at]
            assert tensor.layout == torch.strided
            assert tensor.is_contiguous()
            noted.append((name, tuple(tensor.shape), tensor.untyped_storage().nbytes()))
            call(*arguments)

        return noted_call

    all_reduce, all_gather = dist.all_reduce, dist.all_gather
    dist.all_reduce, dist.all_gather = (
        noting("all_reduce", all_reduce, 0),
        noting("all_gather", all_gather, 1),
    )
    try:
        yield noted
    finally:
        dist.all_reduce, dist.all_gather = all_reduce, all_gather


def _run(rank: int, port: int, data: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    worker = Worker(rank, WORKERS)
    manifest = Manifest.load(data)
    result = {
        "sum": _sum(worker),
        "train": _train(worker, manifest),
        "other": _train(worker, manifest, **OTHER),
        "fine-tuning": _train(worker, manifest, **FINE_TUNING),
    }
    torch.save(result, Path(output, f"{rank}.pt"))
    dist.destroy_process_group()


def _trained_alone(manifest: Manifest, world_size: int) -> tuple[nn.Module, list[float]]:
    """One process stepping over the batches of all workers put together; the loss of each step."""
    model = _model(manifest)
    optimizer = SplitOptimizer(model, RECIPE.learning_rate, RECIPE.l2)
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
    losses = []
    for epoch in range(RECIPE.epochs):
        for parts in zip(*(rank.batches(epoch) for rank in ranks), strict=True):
            batch = Batch.concatenate(parts)
            losses.append(float(train_step(model, optimizer, batch, len(batch)).loss))
    return model, losses


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def results(log: Manifest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    output = tmp_path_factory.mktemp("results")
    torch.multiprocessing.spawn(_run, (port, log.location, str(output)), nprocs=WORKERS)
    return [torch.load(output / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def test_workers_train_the_model_that_one_trains_on_their_batches(
    results: list[dict[str, Any]], log: Manifest
) -> None:
    model, losses = _trained_alone(log, WORKERS)
    first, *others = (result["train"] for result in results)
    for name, expected in model.state_dict().items():
        assert all(torch.equal(first["weights"][name], other["weights"][name]) for other in others), name
        torch.testing.assert_close(first["weights"][name], expected, rtol=1e-4, atol=1e-5, msg=name)
    assert first["losses"] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4], rel=1e-6)
    assert all(other["losses"] == first["losses"] for other in others)


@pytest.mark.parametrize("way", ["other", "fine-tuning"])
def test_workers_agree_in_every_way_of_training(results: list[dict[str, Any]], way: str) -> None:
    first, *others = (result[way]["weights"] for result in results)
    assert not torch.equal(first["mlp.0.weight"], results[0]["train"]["weights"]["mlp.0.weight"])
    assert all(torch.equal(first[name], other[name]) for name in first for other in others)


def test_workers_agree_on_the_average(results: list[dict[str, Any]]) -> None:
    first, *others = (result["fine-tuning"]["average"] for result in results)
    assert "mlp.0.weight" in first
    assert "embedding.weight" not in first  # frozen
    assert all(torch.equal(first[name], other[name]) for name in first for other in others)


def test_a_checkpoint_is_taken_by_all_when_any_asks(results: list[dict[str, Any]]) -> None:
    assert [result["train"]["saved"] for result in results] == [[4, 5, 6, 7, 8]] * WORKERS
    assert [result["sum"]["checkpoint"] for result in results] == [True] * WORKERS


def test_the_loss_of_a_step_is_that_of_all_workers(results: list[dict[str, Any]]) -> None:
    assert [float(result["sum"]["loss"]) for result in results] == [0.5 + 1.5 + 2.5] * WORKERS


def test_gradients_are_summed_alike_on_every_worker(results: list[dict[str, Any]]) -> None:
    for first, *others in zip(*(result["sum"]["ours"] for result in results), strict=True):
        assert all(torch.equal(first, other) for other in others)


def test_the_sum_of_sparse_gradients_is_that_of_gloo(results: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(results[0]["sum"]["ours"], results[0]["sum"]["theirs"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_collectives_get_tensors_of_one_shape_on_all_workers(results: list[dict[str, Any]]) -> None:
    shapes = [result["sum"]["shapes"] for result in results]
    assert shapes[0] == shapes[1] == shapes[2]
    # Lengths, all dense gradients, and rows and values of each table.
    assert [name for name, _, _ in shapes[0]] == ["all_gather", "all_reduce"] + 4 * ["all_gather"]


def test_the_bytes_of_a_sum_are_those_given_to_collectives(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["sum"]["bytes"] == sum(size for _, _, size in result["sum"]["shapes"])
    # Losses and lengths, six dense numbers, and of the two tables as many rows as the longest has.
    tables = [_Tables(rank) for rank in range(WORKERS)]
    longest = [
        max(getattr(table, name).grad.coalesce()._nnz() for table in tables) for name in ("wide", "narrow")
    ]
    expected = 4 * 8 + 6 * 4 + longest[0] * (8 + 5 * 4) + longest[1] * (8 + 4)
    assert results[0]["sum"]["bytes"] == expected


def test_the_history_counts_the_bytes_of_all_workers(results: list[dict[str, Any]]) -> None:
    first, *others = (result["train"]["bytes"] for result in results)
    assert first > 0
    assert all(other == first for other in others)
    # Frozen tables are not sent.
    assert results[0]["fine-tuning"]["bytes"] < first / 2
