"""Rows a second in training: DeepFM with lazily updated tables against its MLP alone."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from afm_dist.dataset.batch import Batch
from afm_dist.evaluation.timing import Speedup, time_in_turn
from afm_dist.models.layers import MLP
from afm_dist.training.loop import train_step
from afm_dist.training.optimizer import SplitOptimizer
from jobs.benchmarks import criteo_shape
from jobs.benchmarks.result import Result, compared, rates

SUITE = "training"
BATCHES = 8
MLP_ALONE = "MLP alone"
LEARNING_RATE = 1e-3
L2 = 1e-5


class _MLPAlone(nn.Module):
    """The MLP on numbers in place of embeddings: what no table can beat."""

    def __init__(self, hidden: Sequence[int], rows: int) -> None:
        super().__init__()
        self.mlp = MLP(criteo_shape.INPUTS, hidden, 0.0)
        self.register_buffer("inputs", torch.randn(rows, criteo_shape.INPUTS))

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        del ids, numeric
        logits: Tensor = self.mlp(self.inputs).squeeze(1)
        return logits


def run(
    *,
    vocabularies: Sequence[int],
    hidden: Sequence[int],
    batch_sizes: Sequence[int],
    rows_per_run: int,
    rounds: int,
) -> list[Result]:
    """Every batch size with every vocabulary; the vocabularies also against the first of them."""
    sizes = {vocabulary: criteo_shape.cardinalities(vocabulary) for vocabulary in vocabularies}
    models = {name: criteo_shape.deepfm(fields, hidden) for name, fields in sizes.items()}
    optimizers = {name: SplitOptimizer(model, LEARNING_RATE, L2) for name, model in models.items()}
    results = []
    for batch_size in batch_sizes:
        steps = max(1, rows_per_run // batch_size)
        alone = _MLPAlone(hidden, batch_size)
        batches = {name: criteo_shape.batches(sizes[name], batch_size, BATCHES) for name in vocabularies}
        actions = {
            MLP_ALONE: _steps(
                alone, SplitOptimizer(alone, LEARNING_RATE, L2), batches[vocabularies[0]], steps
            )
        }
        for name, model in models.items():
            actions[_name(name)] = _steps(model, optimizers[name], batches[name], steps)
        seconds = time_in_turn(actions, rounds)
        prefix = f"batch {batch_size}: "
        results += rates(SUITE, steps * batch_size, seconds, MLP_ALONE, prefix=prefix)
        results += _costs(seconds, vocabularies, steps, prefix)
    return results


def _costs(
    seconds: Mapping[str, Sequence[float]], vocabularies: Sequence[int], steps: int, prefix: str
) -> list[Result]:
    """What a step costs by vocabulary, against the first of them."""
    results: list[Result] = []
    for vocabulary in vocabularies:
        own = seconds[_name(vocabulary)]
        result = Result(
            suite=SUITE,
            name=f"{prefix}step, {vocabulary:.0e} ids",
            value=1000 * statistics.median(own) / steps,
            unit="ms",
            runs=len(own),
        )
        if results:
            slowdown = Speedup.over(own, seconds[_name(vocabularies[0])])
            result = compared(result, results[0].name, slowdown)
        results.append(result)
    return results


def _name(vocabulary: int) -> str:
    return f"DeepFM, {vocabulary:.0e} ids"


def _steps(
    model: nn.Module, optimizer: SplitOptimizer, batches: Sequence[Batch], steps: int
) -> Callable[[], object]:
    """Makes some steps, each on another batch."""
    following = itertools.cycle(batches)

    def work() -> None:
        for _ in range(steps):
            batch = next(following)
            train_step(model, optimizer, batch, len(batch))

    return work
