"""Rows in bfloat16: what a plan rounds, and what checkpoints therefore hold in half the bytes.

A number keeps 8 bits of its mantissa, a relative error of at most 2⁻⁸, and its whole range. Models in memory
compute, and are trained, in float32 all the same.
"""

from __future__ import annotations

import torch
from torch import nn

from afm_dist.compression.plan import Plan
from afm_dist.embedding import FusedEmbedding
from afm_dist.errors import OptionError
from afm_dist.first_order import LinearTerm
from afm_dist.grouped_embedding import MeanEmbedding

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


def rounded_tensors(model: nn.Module, plan: Plan) -> dict[str, torch.dtype]:
    """The tensors that checkpoints hold in another dtype than models have them, and that dtype.

    A tensor that the model has under several names (tied weights) is among them under each.

    Args:
        model: To which the plan was applied.
        plan: Whose ``bfloat16`` names modules.

    Raises:
        OptionError: a name of no module, or of one without rows.
    """
    chosen = {id(parameter) for name in plan.bfloat16 for parameter in _rows(model, name)}
    return {
        name: torch.bfloat16
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in chosen
    }


@torch.no_grad()
def round_rows_(model: nn.Module, plan: Plan) -> None:
    """Let a model have the numbers that it would have from a checkpoint.

    Raises:
        OptionError: as in ``rounded_tensors``.
    """
    for name, dtype in rounded_tensors(model, plan).items():
        parameter = model.get_parameter(name)
        parameter.copy_(parameter.to(dtype))


def _rows(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The rows of a module and of its parts; of fields that are only their means there are none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    module = modules.get(name)
    parts = [part for part in module.modules() if _declared(part) is not None] if module else []
    if not parts:
        what = (
            "which the model does not have"
            if module is None
            else f"a {type(module).__name__}, of which no rows are known that could be rounded"
        )
        known = ", ".join(key for key, other in modules.items() if _declared(other) is not None) or "nothing"
        raise OptionError(
            f"bfloat16 names {name!r}, {what}; what has some: {known} (afm_dist.register_rows tells of those "
            "of a type of your own)"
        )
    found: list[nn.Parameter] = []
    for part in parts:
        for key in _declared(part) or ():
            parameter = part._parameters.get(key)
            if parameter is None:
                raise OptionError(
                    f"bfloat16 names {name!r}, where the {key} of a {type(part).__name__} is no parameter "
                    "but made of others (as by weight_norm), and cannot be rounded; remove that first"
                )
            found.append(parameter)
    return found


def _declared(module: nn.Module) -> tuple[str, ...] | None:
    """Names of the parameters that are rows; None: nothing is said of its type."""
    return next((_ROWS[kind] for kind in type(module).__mro__ if kind in _ROWS), None)
