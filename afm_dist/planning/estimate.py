"""What the stages of a job take: rows, memory, disk, time. Rough, and says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.order import WINDOW_ROWS
from afm_dist.errors import OptionError
from afm_dist.evaluation.score import BATCH_SIZE as SCORING_ROWS
from afm_dist.planning.capacity import Estimate, JobPlan, size
from afm_dist.planning.footprint import Footprint, inference_footprint, training_footprint
from afm_dist.runtime import console
from afm_dist.runtime.cluster import view
from afm_dist.runtime.resources import (
    Cluster,
    ResourceOptions,
    TaskResources,
    TrainingResources,
    training_resources,
)
from afm_dist.runtime.sharing import model_bytes
from afm_dist.statistics.collect import BATCH_SIZE as STATISTICS_ROWS
from afm_dist.statistics.sensitivity import SAMPLE_BATCH, SAMPLE_ROWS
from afm_dist.training.optimizer import sparse_weights
from afm_dist.training.recipe import Recipe

# Per core of the small machine of BENCHMARKS.md, besides the model: reading, and the rows of the tables
# in training. Other machines differ by small factors.
READING_SECONDS = 3e-6
UPDATING_SECONDS = 20e-6
RAY_TRAIN_START_S = 12.0
# Of a training step, whatever its rows; and what several workers add to it: a declared network, no
# measured one.
STEP_S = 2e-3
EXCHANGE_S = 1e-3
NETWORK_BYTES_PER_SECOND = 1e9
# The first tasks of a stage wait for their processes to import torch.
TASKS_START_S = 3.0

# A process with torch and Ray, by itself.
PROCESS_BYTES = 300 << 20
# The same with CUDA: declared, nobody has measured it here.
CUDA_PROCESS_BYTES = 2 << 30
# Ray's own processes beside the driver of a training: its controller and agents.
RAY_BYTES = 700 << 20
# A training worker holds weights and two moments, and writes them out through a copy; of tables with
# row-wise Adagrad, or frozen ones, it holds no moments. An average is held and written out too.
TRAINING_COPIES = 6
ADAGRAD_COPIES = 2
AVERAGE_COPIES = 2
# Checkpoints of a training that are on disk at once: those that are kept, and the one that is written.
CHECKPOINTS = 3
# A rewrite holds the source, the result and its file.
REWRITING_COPIES = 3
# Weights, two moments and gradients.
GPU_COPIES = 4
# Moments of a pass: running, those of a batch, and what their sum needs.
MOMENTS_COPIES = 4
# Labels, logits, and what sorting them takes, on the driver.
BYTES_PER_SCORED_ROW = 40
BYTES_PER_VALUE = 4
INDEX_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the estimates of one model on one dataset are made of.

    Attributes:
        manifest: The dataset.
        bytes: Of the model.
        dense: Bytes of its weights outside the tables.
        looked_up: Bytes of the rows of the tables that one row of data looks up, with their numbers.
        inference: Of a forward pass.
        training: Of a training step.
        moments: Floats in the moments of the layers that are watched.
        layers: How many they are.
        cluster: Where it runs.
        tasks: What a task gets.
        workers: What a training worker gets; None: nodes for them are still to come.
    """

    manifest: Manifest
    bytes: int
    dense: int
    looked_up: int
    inference: Footprint
    training: Footprint
    moments: int
    layers: int
    cluster: Cluster
    tasks: TaskResources
    workers: TrainingResources | None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        manifest: Manifest,
        *,
        options: ResourceOptions,
        workers: int = 1,
        cluster: Cluster | None = None,
    ) -> Costs:
        """Make it from the model on the meta device: nothing is allocated.

        Args:
            config: The model.
            manifest: The dataset.
            options: What tasks and workers get.
            workers: Of a training.
            cluster: Where it would run; by default the one that is connected or named, or this machine.

        Raises:
            OptionError: so many workers do not fit, and no more nodes come.
        """
        with torch.device("meta"):
            model = config.build()
            restructure_(model, config.plan)
        cluster = cluster or view(object_bytes=model_bytes(model))
        shape = len(manifest.categorical), len(manifest.numeric)
        tables = list(sparse_weights(model).values())
        layers = [model.get_submodule(name) for name in getattr(model, "compressible_linears", ())]
        use_gpu = options.use_gpu == "always" or (options.use_gpu == "auto" and cluster.gpus > 0)
        return cls(
            manifest=manifest,
            bytes=model_bytes(model),
            dense=model_bytes(model) - sum(table.numel() * table.element_size() for table in tables),
            looked_up=sum(
                shape[0] * (table[0].numel() * table.element_size() + INDEX_BYTES) for table in tables
            ),
            inference=inference_footprint(model, *shape),
            training=training_footprint(model, *shape),
            moments=sum(
                layer.out_features * (layer.out_features + 1)
                for layer in layers
                if isinstance(layer, nn.Linear)
            ),
            layers=len(layers),
            cluster=cluster,
            tasks=TaskResources(
                cpus=options.task_cpus,
                gpus=options.task_gpus if use_gpu else 0,
                device="cuda" if use_gpu else "cpu",
            ),
            workers=_workers(cluster, workers, use_gpu=use_gpu),
        )

    def training_round(self, stage: str, recipe: Recipe, models: int = 1) -> Estimate:
        """Estimate a round of training of some models in one group of workers."""
        rows = models * recipe.epochs * self.manifest.rows("train")
        watched = models * recipe.most_evaluations * self.manifest.rows("validation")
        workers = 1 if self.workers is None else self.workers.workers
        batch = max(
            self.training.memory(-(-recipe.batch_size // workers)), self.inference.memory(SCORING_ROWS)
        )
        teaching = self.inference.seconds if recipe.distill_weight else 0.0
        work = rows * (self.training.seconds + UPDATING_SECONDS + teaching)
        work += watched * (self.inference.seconds + READING_SECONDS)
        steps = -(-rows // recipe.batch_size)
        seconds = None
        if self.workers is not None and self.workers.device == "cpu":
            seconds = RAY_TRAIN_START_S + work / (workers * self.workers.cpus) + steps * STEP_S
            if workers > 1:
                sent = 2 * self.dense + recipe.batch_size * self.looked_up
                seconds += steps * (EXCHANGE_S + sent / NETWORK_BYTES_PER_SECOND)
        fewer = (TRAINING_COPIES - ADAGRAD_COPIES) * (self.bytes - self.dense)
        without_moments = recipe.table_optimizer == "adagrad" or recipe.trained != "all"
        averaged = self.bytes if recipe.trained == "all" else self.dense
        teacher = self.bytes if recipe.distill_weight else 0
        state = TRAINING_COPIES * self.bytes - (fewer if without_moments else 0) + batch + teacher
        state += AVERAGE_COPIES * averaged if recipe.average else 0
        rows_held = min(WINDOW_ROWS, rows) * self._row_bytes + 2 * self._shard_bytes("train")
        on_gpu = self.tasks.device != "cpu"
        return Estimate(
            stage=stage,
            place="training",
            rows=rows + watched,
            # On a GPU too the state passes through memory when it is read and written.
            memory=self._process + state + rows_held,
            gpu=GPU_COPIES * self.bytes + batch + teacher + (averaged if recipe.average else 0)
            if on_gpu
            else 0,
            driver=PROCESS_BYTES + RAY_BYTES + REWRITING_COPIES * self.bytes,
            disk=(models + 4) * self.bytes + (CHECKPOINTS * averaged if recipe.average else 0),
            seconds=seconds,
        )

    def scoring(self, stage: str, split: str, *, passes: int = 1) -> Estimate:
        """Estimate passes over a split by Ray tasks, of which the driver keeps a number a row."""
        rows = self.manifest.rows(split)
        seconds = self.inference.seconds + READING_SECONDS
        return Estimate(
            stage=stage,
            place="tasks",
            rows=passes * rows,
            tasks=self._groups(split),
            memory=self._task_memory(split, SCORING_ROWS),
            gpu=self._task_gpu(SCORING_ROWS),
            driver=PROCESS_BYTES + self.bytes + BYTES_PER_SCORED_ROW * rows,
            seconds=self._task_seconds(split, passes * rows * seconds),
        )

    def statistics(self, stage: str, *, sequential: bool = False) -> Estimate:
        """Estimate the pass over the training split that leaves a partial per group.

        Args:
            stage: Its name.
            sequential: Whether it is one for each layer but the first, whose moments are there.
        """
        rows = self.manifest.rows("train") * (self.layers - 1 if sequential else 1)
        partial = 8 * self.moments
        # A product of its outputs with themselves for each layer, and the copies it is made from.
        products = Footprint(flops=2 * self.moments, traffic=0, alive=0).seconds
        seconds = self.inference.seconds + products + READING_SECONDS
        return Estimate(
            stage=stage,
            place="tasks",
            rows=rows,
            tasks=len(self.manifest.groups("train")),
            memory=self._task_memory("train", STATISTICS_ROWS) + MOMENTS_COPIES * partial,
            gpu=self._task_gpu(STATISTICS_ROWS),
            driver=PROCESS_BYTES + self.bytes + MOMENTS_COPIES * partial,
            disk=len(self.manifest.groups("train")) * partial,
            note=f"{console.counted(len(self.manifest.groups('train')), 'partial')} of {size(partial)}",
            seconds=self._task_seconds("train", rows * seconds),
        )

    def rewriting(self, stage: str, models: int) -> Estimate:
        """Estimate factorising and writing some models on the driver."""
        return Estimate(
            stage=stage,
            place="driver",
            driver=PROCESS_BYTES + REWRITING_COPIES * self.bytes,
            disk=models * self.bytes,
            seconds=1 + models * self.bytes / 2e8,
        )

    def sensitivity(self, stage: str) -> Estimate:
        """Estimate forward and backward passes over some batches on the driver."""
        batch = self.training.memory(SAMPLE_BATCH)
        rows = min(SAMPLE_ROWS, self.manifest.rows("train"))
        return Estimate(
            stage=stage,
            place="driver",
            rows=rows,
            driver=PROCESS_BYTES + self.bytes + 8 * self.moments + batch,
            seconds=rows * self.training.seconds,
        )

    def timing(self, stage: str, models: int) -> Estimate:
        """Estimate timing some models against each other, all in the memory of the driver."""
        batch = self.inference.memory(SCORING_ROWS)
        return Estimate(
            stage=stage, place="driver", driver=PROCESS_BYTES + models * self.bytes + batch, seconds=10
        )

    def plan(self, stages: Sequence[Estimate], *, output: str | None) -> JobPlan:
        """Put all stages of a job together.

        Args:
            stages: In order.
            output: The run directory, if there is one.
        """
        return JobPlan(
            estimates=tuple(stages),
            cluster=self.cluster,
            tasks=self.tasks,
            training=self.workers,
            object_store=self.bytes,
            output=output,
        )

    @property
    def _row_bytes(self) -> int:
        return BYTES_PER_VALUE * (len(self.manifest.fields) + 1)

    def _shard_bytes(self, split: str) -> int:
        return max((shard.bytes for shard in self.manifest.splits.get(split, ())), default=0)

    def _groups(self, split: str) -> int:
        """Count the tasks that a pass has at most; a split without rows has none."""
        return len(self.manifest.groups(split)) if self.manifest.rows(split) else 0

    def _task_memory(self, split: str, rows: int) -> int:
        """Add up a process, a shard on disk and decoded, a batch and what the model makes of it, in bytes."""
        on_cpu = self.inference.memory(rows) if self.tasks.device == "cpu" else 0
        return self._process + 2 * self._shard_bytes(split) + rows * self._row_bytes + on_cpu

    def _task_gpu(self, rows: int) -> int:
        """Add up a model of its own, and a batch, in bytes."""
        return 0 if self.tasks.device == "cpu" else self.bytes + self.inference.memory(rows)

    @property
    def _process(self) -> int:
        return PROCESS_BYTES if self.tasks.device == "cpu" else CUDA_PROCESS_BYTES

    def _task_seconds(self, split: str, work: float) -> float | None:
        if self.tasks.device != "cpu":
            return None
        groups = self._groups(split)
        # A task has one thread, and no more tasks run than there are groups.
        return TASKS_START_S + work / max(
            1, min(self.cluster.cpus, self.tasks.slots(self.cluster.nodes), groups)
        )


def _workers(cluster: Cluster, workers: int, *, use_gpu: bool) -> TrainingResources | None:
    try:
        return training_resources(cluster.nodes, workers, use_gpu=use_gpu)
    except OptionError:
        if cluster.growing:
            return None
        raise


def new_model(architecture: str, hyper_parameters: Mapping[str, Any], manifest: Manifest) -> ModelConfig:
    """Make the configuration of a model that does not exist yet."""
    return ModelConfig(architecture=architecture, hyper_parameters=hyper_parameters, fields=manifest.fields)
