"""What an exported file says about itself: the same few texts in every format."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version

import torch

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.export.module import IDS, LOGIT, NUMERIC, input_names

# What every file's producer begins with.
PRODUCER = "afm-dist "

_MEANING = {
    IDS: (
        "int64 (batch, categorical fields), in the order of 'fields': the id of the token in its field's "
        "vocabulary; 0 for a token that is not in it"
    ),
    NUMERIC: (
        "float32 (batch, numeric fields), in the order of 'fields': the transformed value less the field's "
        "mean, divided by its deviation; 0 for a missing value"
    ),
}
_OUTPUT = (
    "float32 (batch): the logit; the probability of a click is 1 / (1 + exp(-logit)). NaN for a row with an "
    "id below 0 or not below its field's cardinality"
)


def describe(config: ModelConfig, precision: str, digest: str) -> dict[str, str]:
    """Texts by key: where a value is more than a word it is JSON.

    Args:
        config: Of the checkpoint.
        precision: Of the tables.
        digest: Of the model, which tells it from others.
    """
    inputs = {name: _MEANING[name] for name in input_names(config.fields)}
    return {
        "producer": f"{PRODUCER}{version('afm-dist')}, torch {torch.__version__}",
        "model": config.architecture or "",
        "model_digest": digest,
        "hyper_parameters": json.dumps(dict(config.hyper_parameters)),
        "fields": json.dumps([asdict(field) for field in config.fields], ensure_ascii=False),
        "compression": json.dumps(config.plan.to_json()),
        "precision": precision,
        "inputs": json.dumps(inputs),
        "outputs": json.dumps({LOGIT: _OUTPUT}),
    }
