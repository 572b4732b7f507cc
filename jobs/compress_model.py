"""The model that jobs/compress.py compresses, and its data, before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afm_dist.training.recipe import Preset
from jobs.compress_demo import demo_protocol
from jobs.compress_options import Compress

if TYPE_CHECKING:
    from afm_dist.checkpoint.config import ModelConfig
    from afm_dist.dataset.manifest import Manifest


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
        else training_dataset(str(config.data)).manifest
    )
    if config.checkpoint:
        check_schema(described, manifest, checkpoint=config.checkpoint)
        return described, manifest
    return new_model(config.model, chosen.hyper_parameters, manifest), manifest
