"""Table 2 of Yu et al. (KDD 2024), column "Param.", through the real models and the real rewriting.

Where the table prints what no NFM or FiBiNet can have (it subtracts the saving of a folded first
layer, which they do not have), the count here is the right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from afm_dist.checkpoint.pretrained import count_parameters
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.manifest import Field
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.models import build_model
from afm_dist.models.base import CTRModel


@dataclass(frozen=True)
class Log:
    """A published log and the shapes of the paper's models on it. Only the sum of the ids matters."""

    n_categorical: int
    n_numeric: int
    ids: int
    shape: Mapping[str, Any]
    mlp_rank: int
    code_dim: int

    def fields(self) -> list[Field]:
        sizes = [self.ids // self.n_categorical] * self.n_categorical
        sizes[0] += self.ids - sum(sizes)
        categorical = [Field(name=f"c{i}", kind="categorical", cardinality=n) for i, n in enumerate(sizes)]
        return categorical + [Field(name=f"n{i}", kind="numeric") for i in range(self.n_numeric)]


LOGS = {
    "criteo": Log(26, 13, 33_762_577, {"embedding_dim": 16, "hidden": (400,) * 3}, 64, 2),
    "avazu": Log(22, 0, 9_449_445, {"embedding_dim": 50, "hidden": (2000,) * 3}, 320, 8),
}
MILLIONS = {
    "criteo": {
        "dcn": (574.46, 574.24, 101.42),
        "deepfm": (574.46, 574.24, 101.42),
        "nfm": (574.30, 574.08, 101.40),
        "autoint": (574.46, 574.24, 101.42),
        "fibinet": (578.62, 578.40, 105.73),
        "dcnv2": (574.83, 574.61, 101.79),
        "gdcn": (575.19, 574.98, 102.16),
    },
    "avazu": {
        "dcn": (492.14, 486.70, 87.98),
        "deepfm": (492.13, 486.69, 87.98),
        "nfm": (490.03, 484.59, 87.72),
        "autoint": (492.16, 486.72, 88.01),
        "fibinet": (537.29, 531.85, 134.98),
        "dcnv2": (494.55, 489.11, 90.40),
        "gdcn": (496.97, 491.53, 92.82),
    },
}
STAGES = ("base", "mlp", "emb")


def changes(model: CTRModel, log: Log, stage: str) -> Plan:
    """What the paper does to a model, where the model says it may be done."""
    linears = tuple(
        PlanEntry(name, LowRank(factors="afm", rank=log.mlp_rank, activation="plain"))
        for name in model.compressible_linears
    )
    table = PlanEntry(
        "embedding", LowRank(factors="afm", rank=log.code_dim, folded_into=model.folds.get("embedding"))
    )
    return Plan(entries={"base": (), "mlp": linears, "emb": (*linears, table)}[stage])


@pytest.mark.parametrize(
    ("log", "name", "stage", "millions"),
    [
        pytest.param(LOGS[log], name, stage, count, id=f"{log}-{name}-{stage}")
        for log, models in MILLIONS.items()
        for name, counts in models.items()
        for stage, count in zip(STAGES, counts, strict=True)
    ],
)
def test_parameters_are_those_of_the_paper(log: Log, name: str, stage: str, millions: float) -> None:
    with torch.device("meta"):
        model = build_model(name, log.fields(), log.shape)
        restructure_(model, changes(model, log, stage))

    assert count_parameters(model) / 1e6 == pytest.approx(millions, abs=0.01)
