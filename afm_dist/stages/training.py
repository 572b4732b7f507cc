"""Stages that train: the baseline, and the fine-tuning rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, check_schema, load_config
from afm_dist.checkpoint.files import content_fingerprint
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.models import build_model
from afm_dist.runs.run import Run, Stage
from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.training.fit import WorkerGroup, fit
from afm_dist.training.history import History, summary
from afm_dist.training.recipe import CHECKPOINT_MINUTES, Recipe
from afm_dist.training.worker import HISTORY, Candidate


@dataclass(frozen=True, kw_only=True)
class Models:
    """Checkpoints that one stage left, by row name of the report.

    Attributes:
        stage: The stage.
        checkpoints: Checkpoint directory by name.
        histories: For trained models: what training saw.
    """

    stage: Stage
    checkpoints: dict[str, str]
    histories: dict[str, History]


def external_dataset(location: str) -> tuple[Stage, Manifest]:
    """A dataset directory made before this run.

    Raises:
        DataError: it is not one.
    """
    manifest = Manifest.load(storage.absolute(location))
    return Stage.external("data", manifest.location, manifest.fingerprint()), manifest


def training_dataset(location: str) -> tuple[Stage, Manifest]:
    """A dataset directory to train on, with a warning where training would hardly shuffle it.

    Raises:
        DataError: it is not one.
    """
    data, manifest = external_dataset(location)
    if manifest.row_order == "log":
        console.warn(
            f"{manifest.location}: the training rows lie in the order of the log, of which training permutes "
            "but stretches: an earlier release prepared them; prepare the data again for rows in random order"
        )
    return data, manifest


def external_baseline(location: str, manifest: Manifest) -> Models:
    """A checkpoint trained before this run.

    Raises:
        DataError: it is not one, or was trained on another schema.
    """
    location = storage.absolute(location)
    check_schema(load_config(location), manifest, checkpoint=location)
    stage = Stage.external("baseline", location, content_fingerprint(location))
    return Models(stage=stage, checkpoints={"baseline": location}, histories={})


def train_baseline(
    run: Run,
    data: Stage,
    manifest: Manifest,
    *,
    architecture: str,
    hyper_parameters: Mapping[str, Any],
    recipe: Recipe,
    workers: int,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    options: ResourceOptions = AUTOMATIC,
) -> Models:
    """Train the uncompressed model on the training split, watched on the validation split."""
    config = ModelConfig(architecture=architecture, hyper_parameters=hyper_parameters, fields=manifest.fields)

    def work(folder: str) -> None:
        initial = storage.join(folder, "initial")
        torch.manual_seed(recipe.seed)
        save_pretrained(build_model(architecture, manifest.fields, hyper_parameters), initial, config)
        candidate = Candidate(name="baseline", source=initial, output=folder)
        histories = fit(
            [candidate],
            manifest,
            recipe,
            folder=folder,
            group=WorkerGroup(workers=workers, options=options, checkpoint_minutes=checkpoint_minutes),
            emit=run.event,
        )
        say_histories(histories)
        storage.remove(initial)

    stage = run.stage(
        "train",
        work,
        config={
            "model": architecture,
            **storage.plain(hyper_parameters),
            **asdict(recipe),
            "workers": workers,
        },
        inputs=[data],
    )
    return Models(
        stage=stage,
        checkpoints={"baseline": stage.file("checkpoint")},
        histories={"baseline": History.read(stage.file(HISTORY))},
    )


def finetune(
    run: Run,
    name: str,
    data: Stage,
    manifest: Manifest,
    sources: Mapping[str, str],
    *,
    inputs: Sequence[Stage],
    recipe: Recipe,
    workers: int,
    teacher: str | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    options: ResourceOptions = AUTOMATIC,
) -> Models:
    """Fine-tune several models with the same recipe and the same order of rows.

    What is kept of each is the state with the best validation AUC, the one before fine-tuning
    included, so fine-tuning never ships a worse model.

    Args:
        run: The run directory.
        name: Name of the stage.
        data: The dataset's stage.
        manifest: The dataset.
        sources: Checkpoint to start from, by name.
        inputs: The stages that made them.
        recipe: The same for all.
        workers: Data-parallel workers.
        teacher: Checkpoint of the uncompressed model as it enters the round, made by one of the
            ``inputs``: what all of them, the control included, learn from where the recipe distils.
        checkpoint_minutes: After so long without an evaluation a checkpoint is taken.
        options: What they are given of the cluster.
    """

    def candidates(folder: str) -> list[Candidate]:
        return [
            Candidate(name=key, source=source, output=storage.join(folder, key), teacher=teacher)
            for key, source in sources.items()
        ]

    def work(folder: str) -> None:
        histories = fit(
            candidates(folder),
            manifest,
            recipe,
            folder=folder,
            group=WorkerGroup(workers=workers, options=options, checkpoint_minutes=checkpoint_minutes),
            fine_tuning=True,
            emit=run.event,
        )
        say_histories(histories)

    stage = run.stage(
        name,
        work,
        config={"candidates": list(sources), **asdict(recipe), "workers": workers},
        inputs=[data, *inputs],
    )
    done = candidates(stage.path)
    return Models(
        stage=stage,
        checkpoints={candidate.name: candidate.checkpoint for candidate in done},
        histories={candidate.name: History.read(candidate.history) for candidate in done},
    )


def say_histories(histories: Mapping[str, History]) -> None:
    """What each training saw and what is kept of it, a line an evaluation."""
    for name, history in histories.items():
        for point in history.curve:
            loss = "" if point.train_loss is None else f", training loss {point.train_loss:.4f}"
            console.say(
                f"  {name} step {point.step}: validation AUC {point.validation_auc:.4f}, "
                f"log loss {point.validation_log_loss:.4f}{loss}"
            )
        words = summary(history)
        console.say(f"  {name}: kept {words['kept']}: {words['reason']}")
