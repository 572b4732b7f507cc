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
from afm_dist.grouped_embedding import GroupedEmbedding

WITH_ROWS = (FusedEmbedding, GroupedEmbedding, LinearTerm)


def rounded_tensors(model: nn.Module, plan: Plan) -> dict[str, torch.dtype]:
    """The tensors that checkpoints hold in another dtype than models have them, and that dtype.

    Args:
        model: To which the plan was applied.
        plan: With entries whose ``bfloat16`` names modules.

    Raises:
        OptionError: a name that is none of a module with rows.
    """
    modules = dict(model.named_modules())
    found: dict[str, torch.dtype] = {}
    for entry in plan.entries:
        for name in entry.bfloat16:
            if not isinstance(modules.get(name), WITH_ROWS):
                known = ", ".join(key for key, module in modules.items() if isinstance(module, WITH_ROWS))
                raise OptionError(
                    f"bfloat16 of {entry.name} names {name!r}, which has no rows that could be rounded; what "
                    f"has: {known or 'nothing in this model'}"
                )
            found |= {
                f"{path}.weight": torch.bfloat16
                for path, module in modules[name].named_modules(prefix=name)
                if isinstance(getattr(module, "weight", None), nn.Parameter)
            }
    return found


@torch.no_grad()
def round_rows_(model: nn.Module, plan: Plan) -> None:
    """Let a model have the numbers that it would have from a checkpoint.

    Raises:
        OptionError: as in ``rounded_tensors``.
    """
    for name, dtype in rounded_tensors(model, plan).items():
        parameter = model.get_parameter(name)
        parameter.copy_(parameter.to(dtype))
