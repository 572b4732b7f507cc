"""What all tables that are quantised have in common: float16 levels, and which errors count."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import nn

from afm_dist.compression.method import Method
from afm_dist.errors import OptionError
from afm_dist.methods.quantization.config import Quantization
from afm_dist.methods.quantization.fields import KnownRows, quantised
from afm_dist.methods.quantization.spec import Spec
from afm_dist.methods.quantization.store import QuantizedStore

M = TypeVar("M", bound=nn.Module)


class QuantizationMethod(Method[Quantization, M], ABC, Generic[M]):
    """Tables of any type; what ``build`` gives has its rows in ``store``."""

    stacks = True

    def lossless(self, module: M) -> Quantization:
        """Give rows as they are."""
        del module
        return Quantization(store="float32")

    def needs_sensitivity(self, config: Quantization) -> bool:
        """Tell whether errors count as the logit depends on them."""
        return config.metric == "logit"

    def stored_dtypes(self, model: nn.Module, name: str, config: Quantization) -> Mapping[str, torch.dtype]:
        """List levels and scales, which files hold in float16.

        Raises:
            OptionError: the module is not quantised.
        """
        del config
        store = getattr(model.get_submodule(name), "store", None)
        if not isinstance(store, QuantizedStore):
            raise OptionError(f"{name} is not quantised, though the plan says so")
        short = {id(store.get_parameter(key)): dtype for key, dtype in store.stored_dtypes().items()}
        return {
            key: short[id(parameter)]
            for key, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) in short
        }

    @torch.no_grad()
    def finish(self, model: nn.Module, name: str, config: Quantization) -> None:
        """Round levels and scales to what files hold."""
        for key, dtype in self.stored_dtypes(model, name, config).items():
            parameter = model.get_parameter(key)
            parameter.copy_(parameter.to(dtype))


def fill_field(store: QuantizedStore, field: int, rows: KnownRows, spec: Spec, config: Quantization) -> None:
    """Fit codes and levels of a field, and write them into a store."""
    for tier, found in enumerate(quantised(rows, spec, config)):
        store.write(field, tier, found.books)


def left_alone(names: str) -> str:
    """Say of some tables or fields that they stay as they are."""
    return (
        f"{names} stay float32: with so few ids, codes and what they stand for take no fewer bytes than the "
        "rows"
    )
