"""Rows a second in training: DeepFM with lazily updated tables against its MLP alone."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.evaluation.timing import Speedup, time_interleaved
from afm_dist.models.layers import MLP
from afm_dist.training.forward import Forward, check_precision
from afm_dist.training.loop import optimizer_of, set_dropout
from afm_dist.training.optimizer import SplitOptimizer
from afm_dist.training.recipe import Recipe
from afm_dist.training.step import Objective, train_step
from jobs.benchmarks import criteo_shape
from jobs.benchmarks.result import Result, compared, rates

SUITE = "training"
BATCHES = 8
MLP_ALONE = "MLP alone"
RECIPE = Recipe(learning_rate=1e-3, l2=1e-5, dropout=0.0)


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
    """Every batch size with every vocabulary; the last of them also in the other ways of training.

    Steps with the other vocabularies are also compared with those of the first.
    """
    sizes = {vocabulary: criteo_shape.cardinalities(vocabulary) for vocabulary in vocabularies}
    models = {name: criteo_shape.deepfm(fields, hidden) for name, fields in sizes.items()}
    optimizers = {name: optimizer_of(model, RECIPE) for name, model in models.items()}
    last = vocabularies[-1]
    adagrad = optimizer_of(models[last], RECIPE.using(table_optimizer="adagrad"))
    results = []
    for batch_size in batch_sizes:
        steps = max(1, rows_per_run // batch_size)
        batches = {name: criteo_shape.batches(sizes[name], batch_size, BATCHES) for name in vocabularies}
        alone = _MLPAlone(hidden, batch_size)
        recipe = RECIPE.using(batch_size=batch_size)
        actions = {
            MLP_ALONE: _steps(alone, optimizer_of(alone, recipe), batches[last], steps, recipe),
        }
        for name, model in models.items():
            actions[_name(name)] = _steps(model, optimizers[name], batches[name], steps, recipe)
        for way, changes in other_ways().items():
            optimizer = adagrad if "table_optimizer" in changes else optimizers[last]
            changed = recipe.using(**changes)
            action = _steps(models[last], optimizer, batches[last], steps, changed)
            actions[f"{_name(last)}, {way}"] = action
        seconds = time_interleaved(actions, rounds)
        prefix = f"batch {batch_size}: "
        results += rates(SUITE, steps * batch_size, seconds, MLP_ALONE, prefix=prefix)
        results += _costs(seconds, vocabularies, steps, prefix)
    return results


def other_ways() -> dict[str, dict[str, Any]]:
    """Changes of the recipe that are measured, too, by name; bfloat16 only where the machine has it."""
    ways: dict[str, dict[str, Any]] = {
        "dropout 0.5": {"dropout": 0.5},
        "adagrad": {"table_optimizer": "adagrad"},
        "compiled": {"compile": True},
        "compiled, adagrad": {"table_optimizer": "adagrad", "compile": True},
    }
    try:
        check_precision("bfloat16", torch.device("cpu"))
    except OptionError:
        return ways
    return {**ways, "compiled, bfloat16": {"compile": True, "precision": "bfloat16"}}


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
    model: nn.Module, optimizer: SplitOptimizer, batches: Sequence[Batch], steps: int, recipe: Recipe
) -> Callable[[], object]:
    """Makes some steps, each on another batch."""
    following, forward = itertools.cycle(batches), Forward(model, recipe)

    def work() -> None:
        set_dropout(model, recipe.dropout)
        for batch in itertools.islice(following, steps):
            train_step(model, optimizer, batch, len(batch), objective=Objective(forward))

    return work
