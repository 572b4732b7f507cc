"""The variants of low rank that jobs compare: where the factors come from, and which ranks a sweep tries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from afm_dist.compression.plan import TABLE, Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_
from afm_dist.compression.targets import first_order, folded_into, linears_of, target_linears
from afm_dist.compression.variant import Request, SweptModel, Variant
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import ACTIVATIONS, Activation, Factors, LowRank
from afm_dist.methods.low_rank.grid import default_dims, default_ranks, grid
from afm_dist.methods.low_rank.ranks import FixedRank, KeptEnergy, low_rank, plan_ranks, using
from afm_dist.runtime import console
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.outputs import outputs_of
from afm_dist.tables.table import Table


@dataclass(frozen=True, kw_only=True)
class LowRankVariant(Variant):
    """Low rank with factors of one origin.

    Attributes:
        factors: Where they come from.
    """

    factors: Factors

    def check(self, model: nn.Module, request: Request) -> None:
        """Refuse ranks larger than their layers."""
        linears, table = self._parts(model, request)
        given = [("--embedding-dim", table, request.embedding_dim)]
        if request.mlp_energy is None:
            given.insert(0, ("--mlp-rank", linears, request.mlp_rank))
        for option, entries, rank in given:
            try:
                ranked = [
                    PlanEntry(entry.name, replace(low_rank(entry), rank=rank, folded_into=None))
                    for entry in entries
                ]
                with torch.device("meta"):
                    restructure_(model, Plan(entries=tuple(ranked)))
            except OptionError as error:
                raise OptionError(f"{option} {rank}: {error}") from error

    def warn(self, model: nn.Module, request: Request) -> None:
        """Warn, once for each option, of a rank that does not make its layers smaller."""
        linears, table = self._parts(model, request)
        given = [("--embedding-dim", table, request.embedding_dim)]
        if request.mlp_energy is None:
            given.insert(0, ("--mlp-rank", linears, request.mlp_rank))
        for option, entries, rank in given:
            limits = {entry.name: _saves_below(model, entry.name, request) for entry in entries}
            for name, limit in limits.items():
                if rank >= limit == min(limits.values()):
                    console.warn(
                        f"{option} {rank}: does not make {_shown(model, name)} smaller; below {limit} it "
                        "saves"
                    )
                    break

    def template(self, model: nn.Module, request: Request) -> Plan:
        """Plan the linear layers and the table, of rank 1."""
        linear = LowRank(factors=self.factors, rank=1, activation=_activation(request), kappa=request.kappa)
        linears = (PlanEntry(name, linear) for name in target_linears(model))
        absorbs = first_order(model, "absorb") if request.absorb else None
        table = LowRank(factors=self.factors, rank=1, folded_into=folded_into(model), absorbs=absorbs)
        return Plan(entries=(*linears, PlanEntry(TABLE, table)))

    def plan(self, model: nn.Module, moments: Mapping[str, Moments], request: Request) -> Plan:
        """Plan the ranks that are asked for, or that keep so much of the variance."""
        policy = (
            FixedRank(rank=request.mlp_rank)
            if request.mlp_energy is None
            else KeptEnergy(share=request.mlp_energy)
        )
        linears = plan_ranks(
            moments, policy, method=self.factors, activation=_activation(request), kappa=request.kappa
        )
        *_, table = self.template(model, request).entries
        return linears + Plan(entries=(PlanEntry(TABLE, low_rank(table).with_rank(request.embedding_dim)),))

    def like(self, plan: Plan) -> Plan:
        """Give the plan with these factors."""
        return using(plan, factors=self.factors)

    def points(self, model: nn.Module, request: Request) -> Iterator[SweptModel]:
        """Yield every rank with every dimension, either also left as it is, but not both."""
        least, dim = (
            min(width for name in names for width in _widths(model, name))
            for names in (target_linears(model), [TABLE])
        )
        for rank in request.linear_ranks:
            if not 1 <= rank <= least:
                raise OptionError(f"--sweep-ranks {rank}: the ranks lie in 1..{least}, the narrowest layer")
        for width in request.embedding_dims:
            if not 1 <= width <= dim:
                raise OptionError(f"--sweep-dims {width}: the dimensions lie in 1..{dim}, the model's own")
        whole = self.template(model, request)
        ranks = request.linear_ranks or default_ranks(least)
        for point in grid(self.factors, ranks, request.embedding_dims or default_dims(dim)):
            yield SweptModel(point.name, point.plan(whole, table=TABLE))

    def ablations(self, plan: Plan) -> Mapping[str, Plan]:
        """Give the linear layers with the other ReLU modes between their factors."""
        linears = linears_of(plan)
        chosen = {low_rank(entry).activation for entry in linears.entries}
        return {
            mode: using(linears, activation=mode) for mode in ACTIVATIONS if chosen and mode not in chosen
        }

    def _parts(self, model: nn.Module, request: Request) -> tuple[list[PlanEntry], list[PlanEntry]]:
        *linears, table = self.template(model, request).entries
        return linears, [table]


VARIANTS = (
    LowRankVariant(
        name="afm",
        factors="afm",
        words="afm: the principal components of the outputs, all of which count alike (Yu et al., KDD 2024).",
    ),
    LowRankVariant(
        name="svd",
        leader="afm",
        factors="svd",
        needs_counts=False,
        reference=True,
        words="svd: truncated singular value decomposition of the weights and tables, whatever the data.",
    ),
    LowRankVariant(
        name="weighted",
        leader="afm",
        factors="weighted",
        needs_sensitivity=True,
        allocates=True,
        words="weighted: as afm, but errors of the outputs count as the logit feels them: principal "
        "components in the metric E[ggᵀ] with g the gradient of the logit, over a sample of the training "
        "rows.",
    ),
    LowRankVariant(
        name="sequential",
        leader="afm",
        factors="afm",
        behind_compressed=True,
        swept=False,
        words="sequential: as afm, but the statistics of a linear layer are taken once the layers before it "
        "are compressed; the tables as in afm.",
    ),
)


def _activation(request: Request) -> Activation:
    assert request.activation in ACTIVATIONS, request.activation
    return request.activation


def _widths(model: nn.Module, name: str) -> Iterable[int]:
    module = model.get_submodule(name)
    return outputs_of(module).widths(name, module).values()


def _saves_below(model: nn.Module, name: str, request: Request) -> float:
    """Find the smallest rank that saves nothing."""
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear):
        return math.ceil(layer.in_features * layer.out_features / (layer.in_features + layer.out_features))
    if request.rounded:
        return math.inf
    assert isinstance(layer, Table)
    # What a table absorbs is one more coordinate of its rows, which lay beside them before.
    return layer.dim + request.absorb


def _shown(model: nn.Module, name: str) -> str:
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear):
        return f"the {layer.out_features}x{layer.in_features} layer {name}"
    assert isinstance(layer, Table)
    return f"the embeddings of {layer.dim} dimensions"
