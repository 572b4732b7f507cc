"""What jobs/compress.py is going to do, before it starts: the model, its data, what the stages take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afm_dist.stages.methods import parse_methods
from afm_dist.training.recipe import Preset
from jobs.compress_demo import demo_protocol
from jobs.compress_options import Compress, recipes

if TYPE_CHECKING:
    from afm_dist.checkpoint.config import ModelConfig
    from afm_dist.dataset.manifest import Manifest
    from afm_dist.planning.capacity import Plan
    from afm_dist.stages.sweep import Sweep


def model_config(config: Compress, chosen: Preset) -> ModelConfig:
    """The model to compress, or the one that will be trained (whose MLP does not depend on the data)."""
    from afm_dist.checkpoint.config import ModelConfig, load_config
    from afm_dist.dataset.manifest import Field

    if config.checkpoint:
        return load_config(config.checkpoint)
    return ModelConfig(
        architecture=config.model,
        hyper_parameters=chosen.hyper_parameters,
        fields=tuple(Field(name=name, kind="categorical", cardinality=1) for name in ("any", "other")),
    )


def planned_model(config: Compress, chosen: Preset, described: ModelConfig) -> tuple[ModelConfig, Manifest]:
    """The uncompressed model with all its fields, and its data; of the demo, what they will be like.

    Raises:
        DataError: the checkpoint was trained on another schema.
    """
    from afm_dist.checkpoint.config import check_schema
    from afm_dist.planning.estimate import new_model
    from afm_dist.stages.training import training_dataset
    from data_prep.dry_run import synthetic_manifest

    manifest = (
        synthetic_manifest(config.demo_rows, demo_protocol(config))
        if config.demo
        else training_dataset(str(config.data))[1]
    )
    if config.checkpoint:
        check_schema(described, manifest, checkpoint=config.checkpoint)
        return described, manifest
    return new_model(config.model, chosen.hyper_parameters, manifest), manifest


def plan(
    config: Compress,
    chosen: Preset,
    described: ModelConfig,
    manifest: Manifest,
    ablation: bool,
    asked: Sweep | None,
) -> Plan:
    """What the stages take, and what the cluster has."""
    from afm_dist.planning.estimate import Costs
    from afm_dist.stages.budget import WAYS
    from data_prep.dry_run import estimate_synthetic

    costs = Costs.of(described, manifest, options=config.resources, workers=config.workers)
    prepared = [estimate_synthetic(config.demo_rows, demo_protocol(config), costs.cluster, costs.tasks)]
    first, second = recipes(config, chosen)
    made = [
        *(prepared if config.demo else []),
        *([] if config.checkpoint else [costs.training_round("train", chosen.train)]),
        costs.statistics("statistics-mlp"),
    ]
    if asked is not None:
        models = len(asked.ratios)
        stages = [
            *made,
            costs.sensitivity("sweep"),
            costs.scoring("sweep", "validation", passes=asked.points),
            costs.rewriting("rewrite-sweep", models),
            costs.training_round("finetune-sweep", second, models + 1),
            costs.scoring("sweep-test", "test", passes=asked.points),
            costs.scoring("evaluate", "test", passes=2 + 2 * models),
            costs.timing("throughput", models + 1),
        ]
        return costs.plan(stages, output=config.run_directory)
    methods = parse_methods(config.methods)
    count, modes = len(methods.factored), 2 if ablation else 0
    variants = count + modes
    stages = [
        *made,
        *([costs.sensitivity("ranks")] if config.budgeted else []),
        *(
            [costs.scoring("ranks", "validation", passes=WAYS)]
            if config.budgeted and config.refine_ranks == "on"
            else []
        ),
        *([costs.sensitivity("sensitivity-mlp")] if methods.weighted else []),
        *([costs.statistics("statistics-sequential", in_turn=True)] if methods.in_turn else []),
        costs.rewriting("rewrite-mlp", variants),
        costs.training_round("finetune-mlp", first, variants + 1),
        *([costs.statistics("statistics-embedding")] if config.stream_check else []),
        *(
            costs.sensitivity(f"sensitivity-embedding-{method.name}")
            for method in (methods.factored if config.rows.absorb else methods.weighted)
        ),
        costs.rewriting("rewrite-embedding", count),
        costs.training_round("finetune-embedding", second, count + 1),
        *([costs.training_round("train-scratch", chosen.train)] if methods.scratch else []),
        costs.scoring("evaluate", "test", passes=3 + 2 * variants + 2 * count + methods.scratch),
        # The methods have one structure.
        costs.timing("throughput", 4 + modes),
    ]
    return costs.plan(stages, output=config.run_directory)
