"""What a job would take, before it starts: rows, memory, disk, time. Rough, and says so."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from afm_dist import console
from afm_dist.checkpoint import ModelConfig, load_config
from afm_dist.dataset.manifest import Manifest
from afm_dist.sharing import model_bytes
from afm_dist.training.recipe import Recipe

# Rates of the small machine of BENCHMARKS.md, per core; other machines differ by small factors.
FLOPS_PER_CORE = 40e9
SECONDS_PER_ROW = 3e-6
RAY_TRAIN_START_S = 12.0
BACKWARD_FACTOR = 3
PROCESS_BYTES = 500 << 20


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One line of the plan.

    Attributes:
        stage: Name of the stage.
        rows: Rows it reads, over all its passes.
        memory: Bytes per worker.
        disk: Bytes it leaves.
        seconds: On the given number of cores.
    """

    stage: str
    rows: int
    memory: int
    disk: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the estimates of one model on one dataset are made of."""

    manifest: Manifest
    bytes: int
    flops_per_row: int
    cores: int

    @classmethod
    def of(cls, config: ModelConfig, manifest: Manifest, cores: int) -> Costs:
        """From the model on the meta device: nothing is allocated."""
        with torch.device("meta"):
            model = config.build()
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        flops = 2 * sum(linear.in_features * linear.out_features for linear in linears)
        return cls(manifest=manifest, bytes=model_bytes(model), flops_per_row=flops, cores=cores)

    def _seconds(self, rows: int, factor: float) -> float:
        return rows * (factor * self.flops_per_row / FLOPS_PER_CORE + SECONDS_PER_ROW) / self.cores

    def training(self, stage: str, recipe: Recipe, models: int = 1) -> Estimate:
        """A round of training of some models in one group of workers."""
        rows = models * recipe.epochs * self.manifest.rows("train")
        watched = models * recipe.epochs * recipe.evaluations_per_epoch * self.manifest.rows("validation")
        return Estimate(
            stage=stage,
            rows=rows + watched,
            memory=PROCESS_BYTES + 5 * self.bytes,
            disk=(models + 4) * self.bytes,
            seconds=RAY_TRAIN_START_S + self._seconds(rows, BACKWARD_FACTOR) + self._seconds(watched, 1),
        )

    def inference(self, stage: str, split: str, *, passes: int = 1, partial: int = 0) -> Estimate:
        """Passes over a split by Ray tasks, each leaving partials of some bytes per group."""
        rows = passes * self.manifest.rows(split)
        return Estimate(
            stage=stage,
            rows=rows,
            memory=PROCESS_BYTES + self.bytes + partial,
            disk=partial * len(self.manifest.groups(split)),
            seconds=self._seconds(rows, 2 if partial else 1),
        )

    def rewriting(self, stage: str, models: int) -> Estimate:
        """Factorising and writing some models on the driver."""
        return Estimate(
            stage=stage,
            rows=0,
            memory=PROCESS_BYTES + 2 * self.bytes,
            disk=models * self.bytes,
            seconds=1 + models * self.bytes / 2e8,
        )


def print_estimates(estimates: Sequence[Estimate], costs: Costs) -> None:
    """The plan as a table."""
    table = Table(title="What this would do (rough estimates; nothing was started)")
    for heading in ("stage", "rows read", "memory a worker", "disk", "time"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for item in estimates:
        table.add_row(
            item.stage,
            f"{item.rows:,}" if item.rows else "",
            _bytes(item.memory),
            _bytes(item.disk),
            _time(item.seconds),
        )
    total = sum(item.seconds for item in estimates)
    table.add_row(
        "total",
        f"{sum(item.rows for item in estimates):,}",
        _bytes(max(item.memory for item in estimates)),
        _bytes(sum(item.disk for item in estimates)),
        _time(total),
        style="bold",
    )
    console.out.print(table)
    console.say(
        f"on {costs.cores} cores; the object store of each node holds the model: {_bytes(costs.bytes)}"
    )


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B" if count else ""


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def local_cores() -> int:
    """Cores of this machine: what a local Ray would use."""
    return os.cpu_count() or 1


def training_costs(
    architecture: str, hyper_parameters: Mapping[str, Any], manifest: Manifest, cores: int
) -> Costs:
    """Costs of a model that does not exist yet."""
    config = ModelConfig(architecture=architecture, hyper_parameters=hyper_parameters, fields=manifest.fields)
    return Costs.of(config, manifest, cores)


def checkpoint_costs(checkpoint: str, manifest: Manifest, cores: int) -> Costs:
    """Costs of a model that was trained already."""
    return Costs.of(load_config(checkpoint), manifest, cores)


def partial_bytes(hidden: Sequence[int]) -> int:
    """Bytes of the moments of an MLP's second and third layers, in float64."""
    return sum(8 * width * (width + 1) for width in hidden[1:3])
