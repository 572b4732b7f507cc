"""A small model whose tables are worth quantising, and what is known of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Field
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.quantization.config import Quantization
from afm_dist.models import build_model
from afm_dist.models.base import CTRModel
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import moments_of_table
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.first_order import joint_rows

T = 6
ROWS = {"item": 300, "user": 801, "hour": 24, "one": 1}
FIELDS = (
    *(Field(name=name, kind="categorical", cardinality=rows) for name, rows in ROWS.items()),
    Field(name="price", kind="numeric"),
)
SHAPE: dict[str, Any] = {"embedding_dim": T, "hidden": (12, 8), "dropout": 0.0}
LOW = PlanEntry("embedding", LowRank(rank=3, folded_into="mlp.0"))
ABSORBING = PlanEntry("embedding", LowRank(rank=4, factors="weighted", folded_into="mlp.0", absorbs="linear"))


def config(plan: Plan | None = None, architecture: str = "deepfm") -> ModelConfig:
    return ModelConfig(architecture=architecture, hyper_parameters=SHAPE, fields=FIELDS, plan=plan or Plan())


def model(architecture: str = "deepfm") -> CTRModel:
    torch.manual_seed(0)
    found = build_model(architecture, FIELDS, SHAPE)
    with torch.no_grad():
        for parameter in found.parameters():
            nn.init.normal_(parameter, 0.05, 0.3)
    return found.eval()


def counts() -> dict[str, Tensor]:
    return {name: (2000 / (torch.arange(rows) + 1)).ceil().long() for name, rows in ROWS.items()}


def batch(rows: int = 600) -> Batch:
    """Rows in which ids occur as often as the counts say."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.multinomial(own.double(), rows, True, generator=generator) for own in counts().values()]
    return Batch(torch.stack(ids, 1), torch.randn(rows, 1, generator=generator), torch.zeros(rows))


def known(of: CTRModel | None = None, *, absorbing: bool = False) -> Statistics:
    of = of or model()
    rows = {
        name: joint_rows(of.embedding, of.linear, i) if absorbing else of.embedding.codes(i).detach()
        for i, name in enumerate(ROWS)
    }
    moments = {field_key("embedding", name): moments_of_table(rows[name], counts()[name]) for name in ROWS}
    sensitivity = output_sensitivity(
        of,
        [batch()],
        ["embedding"],
        forward=forward_batch,
        absorbing=["embedding"] if absorbing else (),
    )
    return Statistics(
        moments, sensitivity, {field_key("embedding", name): own for name, own in counts().items()}
    )


def plan(quantization: Quantization, *before: PlanEntry) -> Plan:
    return Plan(entries=(*before, PlanEntry("embedding", quantization)))


def quantised_model(what: Plan, of: CTRModel | None = None) -> CTRModel:
    of = of or model()
    absorbing = any(getattr(entry.config, "absorbs", None) for entry in what.entries)
    statistics = known(of, absorbing=absorbing)
    compress_(of, what, statistics)
    of.eval()
    return of


def logits(of: nn.Module, rows: int = 600) -> Tensor:
    own = batch(rows)
    with torch.no_grad():
        found: Tensor = of(own.ids, own.numeric)
    return found
