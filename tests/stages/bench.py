"""An untrained model with what the steps of a compression need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.plan import Plan
from afm_dist.compression.registry import variants
from afm_dist.compression.targets import target_linears
from afm_dist.compression.variant import Request, Variant
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.methods.low_rank.ranks import plan_of
from afm_dist.models import build_model
from afm_dist.pipelines.context import Context, Dataset
from afm_dist.pipelines.step import Given
from afm_dist.runs.run import Run, Stage
from afm_dist.search.fixed import FixedSearch
from afm_dist.search.rows import PUBLISHED, RowOptions
from afm_dist.search.search import Search
from afm_dist.stages.compression import MOMENTS, RewriteLinears, RewriteTables, TableStatistics
from afm_dist.stages.searching import SearchPlans, SearchResult
from afm_dist.stages.sensitivity import linear_sensitivity, table_sensitivity
from afm_dist.stages.sequential import statistics_behind
from afm_dist.stages.training import Model, Models
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments_file import save_moments
from afm_dist.statistics.observe import forward_batch

HYPER = {"embedding_dim": 4, "hidden": [12, 10, 8], "dropout": 0.1}


def named(names: str) -> list[Variant]:
    """Variants by name, with commas between."""
    return [variants()[name] for name in names.split(",")]


def asking(rank: int, dim: int, rows: RowOptions = PUBLISHED) -> Request:
    """Ranks of the linear layers, and the dimension of the table."""
    return Request(mlp_rank=rank, embedding_dim=dim, activation="shifted", absorb=rows.absorb)


class Bench:
    """An untrained model, its moments, and a run that may compress it."""

    def __init__(self, name: str, dataset: Manifest, folder: Path, hyper: dict[str, object]) -> None:
        torch.manual_seed(0)
        model = build_model(name, dataset.fields, hyper)
        torch.nn.init.normal_(model.embedding.weight)
        config = ModelConfig(architecture=name, hyper_parameters=hyper, fields=dataset.fields)
        self.source = str(folder / "baseline")
        save_pretrained(model, self.source, config)
        self.dataset = dataset
        self.run = Run(str(folder / "run"), job="compress", config={})
        data = Stage.external("data", dataset.location, "data")
        self.context = Context(run=self.run, dataset=Given(Dataset(data, dataset)))
        stage = Stage.external("baseline", self.source, "model")
        self.baseline = Given(Models(stage=stage, checkpoints={"baseline": self.source}, histories={}))
        self.model = Model(self.baseline, "baseline")
        self.batches = list(read_batches(dataset, dataset.shards("train"), 500))
        moments = collect_moments(model, self.batches, target_linears(model), forward_fn=forward_batch)
        self.statistics = Given(self.run.stage("statistics", lambda folder: _save(folder, moments)))

    def find(self, search: Search) -> SearchResult:
        """What a search finds."""
        return SearchPlans(search=search, model=self.model, statistics=self.statistics).run(self.context)

    def given(self, ranks: Mapping[str, Any]) -> SearchResult:
        """A rank for each module, or for each field of it; None leaves it as it is."""
        template = variants()["afm"].template(from_pretrained(self.source), Request(activation="shifted"))
        return self.found(plan_of(template, ranks))

    def found(self, plan: Plan) -> SearchResult:
        """A plan, as if a search had found it."""
        return SearchResult(stage=self.statistics.result, plans={"afm": plan})

    def compress(
        self,
        found: SearchResult | tuple[int, int],
        compared: Sequence[Variant] | None = None,
        *,
        rows: RowOptions = PUBLISHED,
    ) -> tuple[Models, Models]:
        """Without fine-tuning, by the steps of the job.

        Args:
            found: The plans; or the rank of the linear layers and the dimension of the table.
            compared: The variants.
            rows: What else becomes of the table's rows.
        """
        compared = named("afm,svd") if compared is None else compared
        if isinstance(found, tuple):
            found = self.find(FixedSearch(request=asking(*found, rows), variants=compared, rows=rows))
        plans = Given(found)
        sensitivity = linear_sensitivity(self.model, compared)
        behind = statistics_behind(self.model, self.statistics, plans, compared)
        low_rank = RewriteLinears(
            model=self.model,
            statistics=self.statistics,
            found=plans,
            variants=compared,
            sensitivity=sensitivity,
            behind=behind,
        )
        moments = TableStatistics(tuned=low_rank, variants=compared, absorb=rows.absorb)
        tables = table_sensitivity(low_rank, compared, absorb=rows.absorb)
        narrow = RewriteTables(
            tuned=low_rank,
            statistics=moments,
            found=plans,
            variants=compared,
            sensitivity=tables,
            rows=rows,
        )
        for step in (sensitivity, behind, low_rank, moments, *tables.values(), narrow):
            if step is not None:
                step.run(self.context)
        return low_rank.result, narrow.result


def _save(folder: str, moments: dict) -> None:
    save_moments(storage.join(folder, MOMENTS), moments)
