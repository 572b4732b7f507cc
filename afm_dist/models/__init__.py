"""The model zoo: one file per architecture, found by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from afm_dist.dataset.manifest import Field
from afm_dist.errors import OptionError
from afm_dist.models.deepfm import DeepFM

ARCHITECTURES: Mapping[str, type[nn.Module]] = {"deepfm": DeepFM}


def build_model(name: str, fields: Sequence[Field], hyper_parameters: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised model.

    Raises:
        OptionError: unknown name, no categorical field, or a hyper-parameter it does not take.
    """
    if name not in ARCHITECTURES:
        raise OptionError(f"--model {name}: unknown; choose from {', '.join(ARCHITECTURES)}")
    if not any(field.kind == "categorical" for field in fields):
        raise OptionError(
            f"--model {name}: the dataset has no categorical field, so there is nothing to embed"
        )
    try:
        return ARCHITECTURES[name](fields, **hyper_parameters)
    except (TypeError, ValueError) as error:
        raise OptionError(f"--model {name}: {error}") from error
