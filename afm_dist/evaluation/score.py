"""Scoring a split: logits of every row, on Ray or in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import nn

from afm_dist import console
from afm_dist.cluster import ensure_ray, task_resources, task_slots
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest, Shard
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError
from afm_dist.evaluation.metrics import auc, log_loss
from afm_dist.resources import AUTOMATIC, Device, ResourceOptions
from afm_dist.sharing import SharedModel, load_shared, model_bytes, share
from afm_dist.tasks import run_tasks

BATCH_SIZE = 8192


@dataclass(frozen=True)
class Quality:
    """How well a model predicts a split.

    Attributes:
        rows: Rows scored.
        auc: Area under the ROC curve.
        log_loss: In nats per row.
    """

    rows: int
    auc: float
    log_loss: float

    @classmethod
    def of(cls, labels: NDArray[np.float32], logits: NDArray[np.float32], what: str) -> Quality:
        """From labels and logits.

        Raises:
            DataError: only one label occurs, or a logit is not finite; ``what`` names the rows.
        """
        try:
            return cls(rows=len(labels), auc=auc(labels, logits), log_loss=log_loss(labels, logits))
        except ValueError as error:
            raise DataError(f"{what}: {error}") from error


def score_batches(
    model: nn.Module, batches: Iterable[Batch]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Labels and logits of some batches, in order; the model's mode is left as it was.

    The batches are moved to where the model is.
    """
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    labels, logits = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    with torch.inference_mode():
        for batch in batches:
            labels.append(batch.labels.numpy())
            batch = batch.to(device)
            logits.append(model(batch.ids, batch.numeric).float().cpu().numpy())
    model.train(training)
    return np.concatenate(labels), np.concatenate(logits)


@ray.remote
def _score_group(
    shared: SharedModel, manifest: Manifest, shards: Sequence[Shard], device: Device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    torch.set_num_threads(1)
    return score_batches(load_shared(shared).to(device), read_batches(manifest, shards, BATCH_SIZE))


def evaluate_model(
    model: nn.Module,
    manifest: Manifest,
    split: str,
    *,
    name: str = "model",
    options: ResourceOptions = AUTOMATIC,
) -> Quality:
    """AUC and log loss of a model on a split, by Ray tasks over its shard groups.

    Args:
        model: Called with ids and numbers.
        manifest: The dataset.
        split: Which of its rows.
        name: Of the model, for messages.
        options: What each task gets of the cluster.

    Raises:
        DataError: damaged shards, only one label, or logits that are not finite.
    """
    groups = manifest.groups(split)
    ensure_ray(object_bytes=model_bytes(model))
    resources = task_resources(options)
    score_group = _score_group.options(**resources.ray_options)
    shared, data = ray.put(share(model)), ray.put(manifest)
    parts: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    with console.progress(f"{name} on {split}", manifest.rows(split)) as advance:

        def finished(group: int, part: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
            parts[group] = part
            advance(len(part[0]))

        run_tasks(
            lambda i: score_group.remote(shared, data, groups[i], resources.device),
            list(range(len(groups))),
            finished=finished,
            slots=lambda: task_slots(resources),
        )
    labels = np.concatenate([parts[i][0] for i in range(len(groups))])
    logits = np.concatenate([parts[i][1] for i in range(len(groups))])
    return Quality.of(labels, logits, f"{name} on the {split} split")
