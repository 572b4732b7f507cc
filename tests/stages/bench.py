"""An untrained model with what the stages of a compression need."""

from __future__ import annotations

from pathlib import Path

import torch

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.methods.low_rank.ranks import Policy
from afm_dist.models import build_model
from afm_dist.runs.run import Run, Stage
from afm_dist.stages.compression import (
    COMPARED,
    MOMENTS,
    rewrite_linears,
    rewrite_tables,
    table_statistics,
    target_linears,
)
from afm_dist.stages.rows import PUBLISHED, Rows
from afm_dist.stages.sensitivity import table_sensitivity
from afm_dist.stages.training import Models
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments_file import save_moments
from afm_dist.statistics.observe import forward_batch

HYPER = {"embedding_dim": 4, "hidden": [12, 10, 8], "dropout": 0.1}


class Bench:
    """An untrained model, its moments, and a run that may compress it."""

    def __init__(self, name: str, dataset: Manifest, folder: Path, hyper: dict[str, object]) -> None:
        torch.manual_seed(0)
        model = build_model(name, dataset.fields, hyper)
        torch.nn.init.normal_(model.embedding.weight)
        config = ModelConfig(architecture=name, hyper_parameters=hyper, fields=dataset.fields)
        source = str(folder / "baseline")
        save_pretrained(model, source, config)
        self.dataset = dataset
        self.run = Run(str(folder / "run"), job="compress", config={})
        self.data = Stage.external("data", dataset.location, "data")
        self.baseline = Models(
            stage=Stage.external("baseline", source, "model"), checkpoints={"baseline": source}, histories={}
        )
        self.batches = list(read_batches(dataset, dataset.shards("train"), 500))
        moments = collect_moments(model, self.batches, target_linears(model), forward_fn=forward_batch)
        self.statistics = self.run.stage("statistics", lambda folder: _save(folder, moments))

    def compress(
        self, linears: Policy, tables: Policy, *, budget: int | None = None, rows: Rows = PUBLISHED
    ) -> tuple[Models, Models]:
        """Without fine-tuning."""
        low_rank = rewrite_linears(
            self.run,
            self.baseline,
            self.statistics,
            policy=linears,
            activation="shifted",
            kappa=2.0,
            ablation=False,
        )
        moments = table_statistics(
            self.run, self.data, self.dataset, low_rank, stream_check=False, absorb=rows.absorb
        )
        felt = table_sensitivity(self.run, self.data, self.dataset, low_rank, COMPARED, absorb=rows.absorb)
        return low_rank, rewrite_tables(
            self.run, low_rank, moments, sensitivity=felt, policy=tables, rows=rows, budget=budget
        )


def _save(folder: str, moments: dict) -> None:
    save_moments(storage.join(folder, MOMENTS), moments)
