"""Scoring a split: logits of every row, on Ray or in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import nn

from afm_dist.dataset.manifest import Manifest, Shard
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError
from afm_dist.evaluation.calibration import Calibration, calibration
from afm_dist.evaluation.metrics import auc, log_loss
from afm_dist.evaluation.scored_rows import ScoredRows
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import console
from afm_dist.runtime.cluster import ensure_ray, task_resources, task_slots
from afm_dist.runtime.machine import work_with_threads
from afm_dist.runtime.resources import AUTOMATIC, Device, ResourceOptions
from afm_dist.runtime.sharing import SharedModel, load_shared, model_bytes, share
from afm_dist.runtime.tasks import run_tasks

STAGE = "scoring"
BATCH_SIZE = 8192


@dataclass(frozen=True)
class Quality:
    """How well a model predicts a split.

    Attributes:
        rows: Rows scored.
        auc: Area under the ROC curve; None where only one label occurs, or none.
        log_loss: In nats per row; None where there are no rows.
        calibration: Predicted against observed clicks.
    """

    rows: int
    auc: float | None
    log_loss: float | None
    calibration: Calibration

    @classmethod
    def of(cls, scored: ScoredRows) -> Quality:
        """Make it from rows and their logits."""
        return cls(
            rows=len(scored),
            auc=auc(scored) if len(scored.positives) and len(scored.negatives) else None,
            log_loss=log_loss(scored) if len(scored) else None,
            calibration=calibration(scored),
        )


def score_shards(model: nn.Module, manifest: Manifest, shards: Sequence[Shard]) -> ScoredRows:
    """Compute labels and logits of all rows of some shards; the model's mode is left as it was.

    The batches are moved to where the model is.

    Raises:
        DataError: a damaged shard, or a logit that is not finite (names shard and row).
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return ScoredRows.merged(_score_shard(model, manifest, shard) for shard in shards)
    finally:
        model.train(training)


def _score_shard(model: nn.Module, manifest: Manifest, shard: Shard) -> ScoredRows:
    labels, logits = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    device = next(model.parameters()).device
    for batch in read_batches(manifest, [shard], BATCH_SIZE):
        labels.append(batch.labels.numpy())
        batch = batch.to(device)
        logits.append(model(batch.ids, batch.numeric).float().cpu().numpy())
    try:
        return ScoredRows.of(np.concatenate(labels), np.concatenate(logits))
    except ValueError as error:
        raise DataError(
            f"{shard.path}: {error}; look for broken values in this shard or for a diverged model"
        ) from error


@ray.remote(max_retries=0)
def _score_group(
    shared: SharedModel, manifest: Manifest, shards: Sequence[Shard], device: Device
) -> ScoredRows:
    work_with_threads(1)
    return score_shards(load_shared(shared).to(device), manifest, shards)


def evaluate_model(
    model: nn.Module,
    manifest: Manifest,
    split: str,
    *,
    name: str = "model",
    options: ResourceOptions = AUTOMATIC,
    emit: Emit = no_events,
) -> Quality:
    """Measure AUC, log loss and calibration of a model on a split, by Ray tasks over its shard groups.

    Args:
        model: Called with ids and numbers.
        manifest: The dataset.
        split: Which of its rows.
        name: Of the model, for messages and events.
        options: What each task gets of the cluster.
        emit: Gets the events, e.g. ``Run.event``.

    Raises:
        DataError: damaged shards, or logits that are not finite.
        StageError: workers kept dying, or the storage kept failing.
    """
    with console.progress(f"{name} on {split}", manifest.rows(split)) as advance:
        return score_split(model, manifest, split, name=name, options=options, emit=emit, advance=advance)


def score_split(
    model: nn.Module,
    manifest: Manifest,
    split: str,
    *,
    name: str,
    options: ResourceOptions,
    emit: Emit,
    advance: Callable[[int], None],
) -> Quality:
    """Do as ``evaluate_model``; the caller shows the progress: ``advance`` gets numbers of rows."""
    groups = manifest.groups(split) if manifest.rows(split) else []
    ensure_ray(object_bytes=model_bytes(model))
    resources = task_resources(options)
    score_group = _score_group.options(name=STAGE, **resources.ray_options)
    shared, data = ray.put(share(model)), ray.put(manifest)
    parts: list[ScoredRows] = []

    def finished(_: int, part: ScoredRows) -> None:
        # A copy: what Ray hands over stays in its object store as long as it is referred to.
        parts.append(ScoredRows.merged([part]))
        advance(len(part))

    run_tasks(
        lambda i: score_group.remote(shared, data, groups[i], resources.device),
        range(len(groups)),
        finished=finished,
        what=f"{STAGE} {name}",
        name_of=lambda group: f"group {group}",
        slots=lambda: task_slots(resources),
        emit=emit,
    )
    # Merged rows are the same for any order of completion.
    return Quality.of(ScoredRows.merged(parts))
