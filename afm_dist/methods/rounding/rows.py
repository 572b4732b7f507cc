"""Rows in bfloat16: checkpoints hold them in half the bytes.

A number keeps 8 bits of its mantissa, a relative error of at most 2⁻⁸, and its whole range. Models in memory
compute, and are trained, in float32 all the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from afm_dist.compression.method import Method
from afm_dist.errors import OptionError
from afm_dist.methods.rounding.config import Rounding
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.first_order import LinearTerm
from afm_dist.tables.fused import FusedEmbedding
from afm_dist.tables.grouped import MeanEmbedding

# Of a type and those derived from it; another module has the rows of its parts.
_ROWS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Embedding: ("weight",),
    nn.EmbeddingBag: ("weight",),
    FusedEmbedding: ("weight",),
    # A table all the same, so it may be named.
    MeanEmbedding: (),
    LinearTerm: ("weight",),
}


def register_rows(module_type: type[nn.Module], *parameters: str) -> None:
    """Say which parameters of a type of module have a row for each id, so that plans can round them.

    Args:
        module_type: This type, and those derived from it.
        parameters: Their names in such a module.
    """
    _ROWS[module_type] = parameters


class RoundedRows(Method[Rounding, nn.Module]):
    """Rows of any module that has some, or whose parts have some; the module stays the same object."""

    replaces = False
    stacks = True

    def examples(self, module: nn.Module) -> list[Rounding]:
        """Give the one there is."""
        return [Rounding()]

    def build(self, name: str, module: nn.Module, config: Rounding) -> nn.Module:
        """Leave the module as it is."""
        del name, config
        return module

    def fill(self, new: nn.Module, name: str, module: nn.Module, config: Rounding, known: Statistics) -> None:
        """Do nothing: values are rounded by ``finish``, once a whole plan succeeded."""

    def stored_dtypes(self, model: nn.Module, name: str, config: Rounding) -> Mapping[str, torch.dtype]:
        """List the rows of the module and of its parts, under all names that the model has for them.

        Raises:
            OptionError: it has none.
        """
        chosen = {id(parameter) for parameter in _rows(model, name)}
        return {
            key: config.torch_dtype
            for key, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) in chosen
        }

    @torch.no_grad()
    def finish(self, model: nn.Module, name: str, config: Rounding) -> None:
        """Round the rows in place."""
        for parameter in _rows(model, name):
            parameter.copy_(parameter.to(config.torch_dtype))


def _rows(model: nn.Module, name: str) -> list[nn.Parameter]:
    """List the rows of a module and of its parts; of fields that are only their means there are none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    module = modules.get(name)
    parts = [part for part in module.modules() if _declared(part) is not None] if module else []
    if not parts:
        what = (
            "no module of the model"
            if module is None
            else f"a {type(module).__name__}, of which no rows are known"
        )
        known = ", ".join(key for key, other in modules.items() if _declared(other) is not None) or "nothing"
        raise OptionError(
            f"{name!r} cannot be rounded: it is {what}; what has rows: {known} (afm_dist.register_rows names "
            "those of a type of your own)"
        )
    found: list[nn.Parameter] = []
    for part in parts:
        for key in _declared(part) or ():
            parameter = part._parameters.get(key)
            if parameter is None:
                raise OptionError(
                    f"{name!r} cannot be rounded: the {key} of a {type(part).__name__} is no parameter "
                    "but made of others (as by weight_norm), and cannot be rounded; remove that first"
                )
            found.append(parameter)
    return found


def _declared(module: nn.Module) -> tuple[str, ...] | None:
    """Name the parameters that are rows; None: nothing is said of its type."""
    return next((_ROWS[kind] for kind in type(module).__mro__ if kind in _ROWS), None)
