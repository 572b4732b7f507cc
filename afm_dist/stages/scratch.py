"""The stage that trains a small model from scratch, to compare with one that was large once."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.manifest import Manifest
from afm_dist.runs.run import Run, Stage
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.stages.methods import AFM, SCRATCH, Methods
from afm_dist.stages.training import Models, say_histories
from afm_dist.tables.fused import FusedEmbedding
from afm_dist.training.fit import WorkerGroup, fit
from afm_dist.training.history import History
from afm_dist.training.recipe import CHECKPOINT_MINUTES, Recipe
from afm_dist.training.worker import HISTORY, Candidate


def train_scratch(
    run: Run,
    data: Stage,
    manifest: Manifest,
    narrow: Models,
    methods: Methods,
    *,
    recipe: Recipe,
    workers: int,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    options: ResourceOptions = AUTOMATIC,
) -> Models | None:
    """Train the structure of ``afm-emb`` as the baseline is trained, from weights drawn anew.

    Args:
        run: The run directory.
        data: The dataset's stage.
        manifest: The dataset.
        narrow: Models with narrow tables: their structure.
        methods: What the run compares.
        recipe: The baseline's.
        workers: Data-parallel workers.
        checkpoint_minutes: After so long without an evaluation a checkpoint is taken.
        options: What they are given of the cluster.

    Returns:
        None where the run compares no such model.
    """
    if not methods.scratch:
        return None
    config = load_config(narrow.checkpoints[AFM.tables])

    def work(folder: str) -> None:
        initial = storage.join(folder, "initial")
        torch.manual_seed(recipe.seed)
        model = restructure_(config.build(), config.plan)
        _spread_projections(model)
        save_pretrained(model, initial, config)
        say_histories(
            fit(
                [Candidate(name=SCRATCH, source=initial, output=folder)],
                manifest,
                recipe,
                folder=folder,
                group=WorkerGroup(workers=workers, options=options, checkpoint_minutes=checkpoint_minutes),
                emit=run.event,
            )
        )
        storage.remove(initial)

    stage = run.stage(
        "train-scratch",
        work,
        # The structure, not the values of what was compressed.
        config={"model": config.to_json(), **asdict(recipe), "workers": workers},
        inputs=[data],
    )
    return Models(
        stage=stage,
        checkpoints={SCRATCH: stage.file("checkpoint")},
        histories={SCRATCH: History.read(stage.file(HISTORY))},
    )


def _spread_projections(model: nn.Module) -> None:
    """Draw the projections such that embeddings begin as widely spread as codes, as in a plain table."""
    for module in model.modules():
        if isinstance(module, FusedEmbedding) and module.projection is not None:
            nn.init.normal_(module.projection, std=module.code_dim**-0.5)
