"""Which ranks save anything: two factors of a high rank have more numbers than the layer they replace."""

from __future__ import annotations

import math

import torch
from torch import nn

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.methods.low_rank.config import DEFAULT_KAPPA
from afm_dist.methods.low_rank.ranks import FixedRank, Policy
from afm_dist.runtime import console
from afm_dist.stages.compression import plan_for
from afm_dist.stages.rows import PUBLISHED, Rows
from afm_dist.tables.table import Table


def warn_of_useless_ranks(
    config: ModelConfig, mlp: Policy, embedding: Policy, rows: Rows = PUBLISHED
) -> None:
    """Warn, once for each option, of a rank that does not make its layers smaller.

    Args:
        config: The uncompressed model.
        mlp: How the ranks of its linear layers are chosen; only of fixed ones there is anything to say.
        embedding: How that of its table is.
        rows: What else becomes of the table's rows.
    """
    with torch.device("meta"):
        model = config.build()
    *linears, table = plan_for(model, activation="none", kappa=DEFAULT_KAPPA, rows=rows).entries
    for option, entries, policy in (("--mlp-rank", linears, mlp), ("--embedding-dim", [table], embedding)):
        if not isinstance(policy, FixedRank):
            continue
        limits = {entry.name: _saves_below(model, entry.name, rows) for entry in entries}
        for name, limit in limits.items():
            if policy.rank >= limit == min(limits.values()):
                console.warn(
                    f"{option} {policy.rank}: does not make {_shown(model, name)} smaller; below {limit} it "
                    "saves"
                )
                break


def _saves_below(model: nn.Module, name: str, rows: Rows) -> float:
    """The smallest rank that saves nothing."""
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear):
        return math.ceil(layer.in_features * layer.out_features / (layer.in_features + layer.out_features))
    if rows.codes == "bfloat16":
        return math.inf
    assert isinstance(layer, Table)
    # What a table absorbs is one more coordinate of its rows, which lay beside them before.
    return layer.dim + rows.absorb


def _shown(model: nn.Module, name: str) -> str:
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear):
        return f"the {layer.out_features}x{layer.in_features} layer {name}"
    assert isinstance(layer, Table)
    return f"the embeddings of {layer.dim} dimensions"
