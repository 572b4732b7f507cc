"""Rows a second that DeepFM scores: uncompressed, with AFM's MLP, with AFM's MLP and tables."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.batch import Batch
from afm_dist.evaluation.timing import time_in_turn
from afm_dist.models.deepfm import DeepFM
from jobs.benchmarks import criteo_shape
from jobs.benchmarks.result import Result, rates

SUITE = "inference"
BATCHES = 8
BASELINE = "DeepFM"


def run(
    *,
    vocabulary: int,
    hidden: Sequence[int],
    mlp_rank: int,
    embedding_dim: int,
    batch_size: int,
    rounds: int,
) -> list[Result]:
    """Eager, all threads; random weights: speed depends on the structure alone."""
    sizes = criteo_shape.cardinalities(vocabulary)
    baseline = criteo_shape.deepfm(sizes, hidden).eval()
    linears = tuple(
        PlanEntry(name=name, method="afm", rank=mlp_rank, activation="shifted")
        for name in baseline.compressible_linears
    )
    tables = tuple(
        PlanEntry(name=table, method="afm", rank=embedding_dim, folded_into=reader)
        for table, reader in DeepFM.folds.items()
    )
    models = {
        BASELINE: baseline,
        f"AFM MLP, rank {mlp_rank}": _rewritten(baseline, Plan(entries=linears)),
        f"AFM EMB, {embedding_dim} of 16": _rewritten(baseline, Plan(entries=(*linears, *tables))),
    }
    batches = criteo_shape.batches(sizes, batch_size, BATCHES)
    with torch.inference_mode():
        scoring = {name: _scoring(model, batches) for name, model in models.items()}
        seconds = time_in_turn(scoring, rounds)
    return rates(SUITE, batch_size, seconds, BASELINE)


def _rewritten(model: nn.Module, plan: Plan) -> nn.Module:
    return restructure_(copy.deepcopy(model), plan).eval()


def _scoring(model: nn.Module, batches: Sequence[Batch]) -> Callable[[], object]:
    """Scores another batch with every call; every model sees the same ones."""
    following = itertools.cycle([(batch.ids.long(), batch.numeric) for batch in batches])
    return lambda: model(*next(following))
