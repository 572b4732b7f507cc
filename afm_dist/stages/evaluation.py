"""Stages that measure: quality on the test split, size, and throughput."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import torch

from afm_dist import storage
from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import count_parameters, from_pretrained
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_shard
from afm_dist.evaluation.calibration import BINS
from afm_dist.evaluation.score import evaluate_model
from afm_dist.evaluation.throughput import BATCH_SIZE, measure_throughput
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.planning.capacity import Estimate
from afm_dist.planning.estimate import Costs
from afm_dist.report import text
from afm_dist.report.schema import ReliabilityBin
from afm_dist.runs.events import Emit, no_events
from afm_dist.runs.run import STAGE_FIX, Stage
from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.stages.training import Models

RESULTS = "results.json"


class MeasuredQuality(TypedDict):
    """One model, in the results of the ``evaluate`` stage; null where its rows do not define a figure."""

    name: str
    stage: str
    auc: float | None
    log_loss: float | None
    calibration: float | None
    calibration_error: float | None
    reliability: list[ReliabilityBin]
    parameters: int
    bytes: int


class MeasuredStructure(TypedDict):
    """One structure, in the results of the ``throughput`` stage."""

    rows_per_second: float
    ratio: float
    ratio_min: float
    ratio_max: float


class MeasuredSpeed(TypedDict):
    """The results of the ``throughput`` stage."""

    batch_size: int
    threads: int
    structures: dict[str, MeasuredStructure]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint that becomes a row of the table.

    Attributes:
        name: Row name: ``baseline``, ``control``, ``afm-mlp``, …
        stage: ``trained``, ``before-finetune`` or ``after-finetune``.
        checkpoint: Its directory.
    """

    name: str
    stage: str
    checkpoint: str


@dataclass(kw_only=True)
class EvaluateModels(Step[Stage]):
    """Measures AUC, log loss, calibration, parameters and bytes of every subject on the test split.

    What is undefined on it is null.

    Attributes:
        subjects: Gives the rows, once the models are there.
        inputs: Make the models.
        count: How many rows there are, as far as that is known before.
    """

    subjects: Callable[[], Sequence[Subject]]
    inputs: Sequence[Step[Models]]
    count: int

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a pass over the test split for each row."""
        return [costs.scoring("evaluate", "test", passes=self.count)]

    def work(self, context: Context) -> Stage:
        """Measure and write it."""
        subjects = self.subjects()

        def work(folder: str) -> None:
            results = [
                measure_quality(
                    subject, context.manifest, "test", options=context.options, emit=context.run.event
                )
                for subject in subjects
            ]
            storage.write_json(storage.join(folder, RESULTS), results)

        return context.run.stage(
            "evaluate",
            work,
            config={
                "subjects": [[subject.name, subject.stage] for subject in subjects],
                "calibration_bins": BINS,
            },
            inputs=[context.data, *(step.result.stage for step in self.inputs)],
        )


def measure_quality(
    subject: Subject,
    manifest: Manifest,
    split: str,
    *,
    options: ResourceOptions = AUTOMATIC,
    emit: Emit = no_events,
) -> dict[str, Any]:
    """Measure one row of the table, without throughput."""
    model = from_pretrained(subject.checkpoint)
    name = f"{subject.name} {subject.stage}"
    quality = evaluate_model(model, manifest, split, name=name, options=options, emit=emit)
    return {
        "name": subject.name,
        "stage": subject.stage,
        "auc": quality.auc,
        "log_loss": quality.log_loss,
        "calibration": quality.calibration.ratio,
        "calibration_error": quality.calibration.expected_error,
        "reliability": quality.calibration.to_json(),
        "parameters": count_parameters(model),
        "bytes": size_on_disk(subject.checkpoint),
    }


def print_evaluation(quality: Stage) -> None:
    """Print one line per row of the ``evaluate`` stage."""
    for row in storage.read_json(quality.file(RESULTS), list[MeasuredQuality], fix=STAGE_FIX):
        console.info(
            f"{row['name']} on the test split: AUC {text.measured(row['auc'])}, log loss "
            f"{text.measured(row['log_loss'])}, calibration {text.measured(row['calibration'])}, "
            f"{row['parameters']:,} parameters, {row['bytes']:,} bytes"
        )


@dataclass(kw_only=True)
class MeasureThroughput(Step[Stage]):
    """Measures the CPU throughput at batch 10000 of every structure among the subjects, against the first.

    Models of the same structure (same layers, other weights) share one measurement. All structures
    are timed in turn, in this process, with all its threads.

    Attributes:
        subjects: Gives the rows, once the models are there.
        inputs: Make the models.
        structures: How many there are, as far as that is known before.
    """

    subjects: Callable[[], Sequence[Subject]]
    inputs: Sequence[Step[Models]]
    structures: int

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give the timing of all structures."""
        return [costs.timing("throughput", self.structures)]

    def work(self, context: Context) -> Stage:
        """Measure and write it."""
        subjects = self.subjects()

        def work(folder: str) -> None:
            batch = timing_batch(context.manifest)
            distinct = {structure(subject.checkpoint): subject for subject in reversed(subjects)}
            models = {
                key: from_pretrained(distinct[key].checkpoint)
                for key in dict.fromkeys(structure(subject.checkpoint) for subject in subjects)
            }
            measured = measure_throughput(models, batch)
            for key, speed in measured.items():
                console.info(
                    f"  {distinct[key].name}: {speed.rows_per_second:,.0f} rows/s, {speed.ratio:.2f} times "
                    f"the baseline ({speed.ratio_min:.2f} to {speed.ratio_max:.2f})"
                )
            results = {
                "batch_size": len(batch),
                "threads": torch.get_num_threads(),
                "structures": {key: asdict(speed) for key, speed in measured.items()},
            }
            storage.write_json(storage.join(folder, RESULTS), results)

        return context.run.stage(
            "throughput",
            work,
            config={
                "subjects": [[subject.name, subject.stage] for subject in subjects],
                # The results go by them, and what tells structures apart may become another.
                "structures": storage.fingerprint([structure(subject.checkpoint) for subject in subjects]),
            },
            inputs=[context.data, *(step.result.stage for step in self.inputs)],
        )


def timing_batch(manifest: Manifest, split: str = "test") -> Batch:
    """Read the split's first rows, repeated if it is short, as one batch of 10000.

    Of a split without rows, those of the training split: how fast a model is does not depend on it.
    """
    parts: list[Batch] = []
    rows = 0
    split = split if manifest.rows(split) else "train"
    shards = manifest.shards(split)
    while rows < BATCH_SIZE:
        for shard in shards:
            parts.append(read_shard(manifest, shard))
            rows += len(parts[-1])
            if rows >= BATCH_SIZE:
                break
    return Batch.concatenate(parts)[:BATCH_SIZE]


def structure(checkpoint: str) -> str:
    """Fingerprint what decides a model's speed: its layers and widths, not their values or origin."""
    config = load_config(checkpoint)
    entries = [
        [entry.name, structure]
        for entry in config.plan.entries
        if (structure := entry.config.structure()) is not None
    ]
    return storage.fingerprint({**config.to_json(), "compression": entries})


def rows_of(
    quality: Stage,
    speed: Stage,
    subjects: Sequence[Subject],
    notes: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Make the rows of ``report.json``.

    Args:
        quality: The ``evaluate`` stage.
        speed: The ``throughput`` stage.
        subjects: In the order of the rows.
        notes: Further entries of a row, by (name, stage).
    """
    structures = storage.read_json(speed.file(RESULTS), MeasuredSpeed, fix=STAGE_FIX)["structures"]
    qualities = storage.read_json(quality.file(RESULTS), list[MeasuredQuality], fix=STAGE_FIX)
    rows = []
    for subject, row in zip(subjects, qualities, strict=True):
        measured = structures[structure(subject.checkpoint)]
        rows.append(
            {
                **row,
                "rows_per_second": measured["rows_per_second"],
                "throughput_ratio": measured["ratio"],
                "throughput_ratio_min": measured["ratio_min"],
                "throughput_ratio_max": measured["ratio_max"],
                **notes.get((subject.name, subject.stage), {}),
            }
        )
    return rows
