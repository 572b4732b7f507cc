"""``config.json`` of a checkpoint: everything about a model but its tensors."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.files import CONFIG, read_json
from afm_dist.compression.plan import Plan
from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.errors import DataError
from afm_dist.models import build_model

FORMAT_VERSION = 1


class _Config(TypedDict):
    """What ``config.json`` holds."""

    format_version: int
    architecture: str | None
    hyper_parameters: dict[str, Any]
    fields: tuple[Field, ...]
    compression: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything about a model but its tensors.

    Attributes:
        architecture: Registered name; None for a model of the user's own.
        hyper_parameters: Keyword arguments of the architecture.
        fields: Schema the model was trained on.
        plan: What was compressed, in order.
    """

    architecture: str | None = None
    hyper_parameters: Mapping[str, Any]
    fields: tuple[Field, ...] = ()
    plan: Plan = field(default_factory=Plan)

    def build(self) -> nn.Module:
        """Build the uncompressed architecture, freshly initialised.

        Raises:
            DataError: a model of the user's own, which only its owner can build.
        """
        if self.architecture is None:
            raise DataError(
                "a checkpoint of a model of your own: build the model and pass it as "
                "from_pretrained(location, model=model)"
            )
        return build_model(self.architecture, self.fields, self.hyper_parameters)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "format_version": FORMAT_VERSION,
            "architecture": self.architecture,
            "hyper_parameters": dict(self.hyper_parameters),
            "fields": [asdict(item) for item in self.fields],
            "compression": self.plan.to_json(),
        }


def load_config(location: str) -> ModelConfig:
    """Read the config of a checkpoint directory.

    Raises:
        DataError: not a checkpoint, of an unknown version or content, or altered.
    """
    path = storage.join(location, CONFIG)
    if not storage.exists(path):
        raise DataError(f"{location}: not a checkpoint directory (no {CONFIG})")
    return parse_config(read_json(location, CONFIG, dict[str, Any]), path)


def parse_config(content: Mapping[str, Any], path: str) -> ModelConfig:
    """Parse the content of a ``config.json``.

    Raises:
        DataError: it is of an unknown version, or not understood.
    """
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {reprlib.repr(version)} is unknown (this release reads {FORMAT_VERSION})"
        )
    found = storage.as_typed(content, _Config, source=path)
    return ModelConfig(
        architecture=found["architecture"],
        hyper_parameters=found["hyper_parameters"],
        fields=found["fields"],
        plan=Plan.from_json(found["compression"], source=path),
    )


def check_schema(config: ModelConfig, manifest: Manifest, *, checkpoint: str) -> None:
    """Refuse a model for data of another schema.

    Raises:
        DataError: names the first field that differs, and how.
    """
    ours: Sequence[Field] = config.fields
    theirs: Sequence[Field] = manifest.fields
    if ours == theirs:
        return
    where = f"{checkpoint} was trained on another schema than {manifest.location}"
    ours_by_name = {item.name: item for item in ours}
    for other in theirs:
        mine = ours_by_name.get(other.name)
        if mine is None:
            raise DataError(f"{where}: the model does not know field {other.name!r}; train on this data")
        for key in ("kind", "cardinality", "mean", "deviation", "column", "transform"):
            if getattr(mine, key) != getattr(other, key):
                raise DataError(
                    f"{where}: field {other.name!r} has {key} {getattr(mine, key)} in the model and "
                    f"{getattr(other, key)} in the data; use the data it was trained on"
                )
    missing = sorted(set(ours_by_name) - {item.name for item in theirs})
    raise DataError(f"{where}: the data lacks {', '.join(missing) or 'the same order of fields'}")
