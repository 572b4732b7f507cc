"""What the inference benchmark scores with: DeepFM uncompressed, compressed, and with separate tables."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.manifest import Field
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.models.deepfm import DeepFM
from afm_dist.models.layers import factorization_machine, flat_inputs
from jobs.benchmarks import criteo_shape

BASELINE, MLP, EMB = "DeepFM", "AFM MLP", "AFM EMB"


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A log and the model that Yu et al. (KDD 2024) trained on it.

    Attributes:
        name: Put before the names of its figures.
        categorical: F.
        numeric: C.
        vocabulary: Ids of all fields together.
        embedding_dim: T.
        hidden: Widths of the MLP's hidden layers.
        mlp_rank: Of the MLP's second and third linear layers.
        code_dim: K.
    """

    name: str
    categorical: int
    numeric: int
    vocabulary: int
    embedding_dim: int
    hidden: Sequence[int]
    mlp_rank: int
    code_dim: int

    @property
    def cardinalities(self) -> list[int]:
        """Ids of each field."""
        return criteo_shape.cardinalities(self.vocabulary, self.categorical)

    @property
    def fields(self) -> list[Field]:
        """The schema."""
        return criteo_shape.fields(self.cardinalities, self.numeric)


CRITEO = ModelShape(
    name="Criteo",
    categorical=26,
    numeric=13,
    vocabulary=33_762_577,
    embedding_dim=16,
    hidden=(400, 400, 400),
    mlp_rank=64,
    code_dim=2,
)
AVAZU = ModelShape(
    name="Avazu",
    categorical=22,
    numeric=0,
    vocabulary=9_449_445,
    embedding_dim=50,
    hidden=(2000, 2000, 2000),
    mlp_rank=320,
    code_dim=8,
)


def models_of(shape: ModelShape) -> dict[str, DeepFM]:
    """The baseline, with AFM's MLP, and with AFM's MLP and tables; the first two share their tables.

    Random weights: speed depends on the structure alone.
    """
    baseline = DeepFM(shape.fields, embedding_dim=shape.embedding_dim, hidden=shape.hidden, dropout=0.0)
    linear = LowRank(rank=shape.mlp_rank, activation="shifted")
    linears = tuple(PlanEntry(name, linear) for name in baseline.compressible_linears)
    tables = tuple(
        PlanEntry(table, LowRank(rank=shape.code_dim, folded_into=reader))
        for table, reader in DeepFM.folds.items()
    )
    models = {BASELINE: baseline, MLP: _sharing(baseline), EMB: _sharing(baseline)}
    restructure_(models[MLP], Plan(entries=linears))
    restructure_(models[EMB], Plan(entries=(*linears, *tables)))
    return {name: model.eval().requires_grad_(False) for name, model in models.items()}


def _sharing(model: DeepFM) -> DeepFM:
    """A copy with the same tables."""
    tables = (model.embedding.weight, model.linear.weight)
    return copy.deepcopy(model, {id(table): table for table in tables})


class SeparateTables(nn.Module):
    """The baseline as most implementations have it: two ``nn.Embedding`` a field, looked up one by one.

    Args:
        model: Its weights are used.
    """

    def __init__(self, model: DeepFM) -> None:
        super().__init__()
        rows = [model.embedding.rows(i) for i in range(model.n_fields)]
        self.embeddings = nn.ModuleList(nn.Embedding.from_pretrained(model.embedding.weight[r]) for r in rows)
        self.weights = nn.ModuleList(nn.Embedding.from_pretrained(model.linear.weight[r]) for r in rows)
        self.numeric = model.linear.numeric
        self.mlp = model.mlp

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        """Ids (B, F) and numbers (B, C) -> logits (B,)."""
        columns = ids.unbind(1)
        vectors = torch.stack([table(i) for table, i in zip(self.embeddings, columns, strict=True)], 1)
        weights = torch.cat([table(i) for table, i in zip(self.weights, columns, strict=True)], 1)
        deep = self.mlp(flat_inputs(vectors, numeric)).squeeze(1)
        logits: Tensor = weights.sum(1) + numeric @ self.numeric + factorization_machine(vectors) + deep
        return logits
