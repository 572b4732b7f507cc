"""The model zoo: one file per architecture, found by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afm_dist.dataset.manifest import Field
from afm_dist.errors import OptionError
from afm_dist.models.autoint import AutoInt
from afm_dist.models.base import CTRModel
from afm_dist.models.dcn import DCN
from afm_dist.models.dcnv2 import DCNv2
from afm_dist.models.deepfm import DeepFM
from afm_dist.models.dlrm import DLRM
from afm_dist.models.fibinet import FiBiNet
from afm_dist.models.gdcn import GDCN
from afm_dist.models.nfm import NFM

ARCHITECTURES: Mapping[str, type[CTRModel]] = {
    "deepfm": DeepFM,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "gdcn": GDCN,
    "autoint": AutoInt,
    "nfm": NFM,
    "fibinet": FiBiNet,
    "dlrm": DLRM,
}


# Hyper-parameters that jobs/train.py has options for. What a model says of one begins with its name.
OPTIONS: Mapping[str, str] = {
    "embedding_dim": "--embedding-dim",
    "hidden": "--hidden",
    "dropout": "--dropout",
}


def build_model(name: str, fields: Sequence[Field], hyper_parameters: Mapping[str, Any]) -> CTRModel:
    """Build a freshly initialised model.

    Raises:
        OptionError: unknown name, fields the model cannot work with, a hyper-parameter it does not take, or
            a value that cannot be, by the name of its option where there is one.
    """
    if name not in ARCHITECTURES:
        raise OptionError(f"--model {name}: unknown; choose from {', '.join(ARCHITECTURES)}")
    try:
        return ARCHITECTURES[name](fields, **hyper_parameters)
    except (TypeError, ValueError) as error:
        subject, _, problem = str(error).partition(" ")
        if subject in OPTIONS:
            raise OptionError(f"{OPTIONS[subject]} {problem} (--model {name})") from error
        raise OptionError(f"--model {name}: {error}") from error
