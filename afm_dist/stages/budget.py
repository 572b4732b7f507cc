"""The stage that chooses ranks for a budget of bytes, and the refusal of budgets that cannot be met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.budget import (
    Allocation,
    allocate,
    check_budget,
    description_bytes,
    least_bytes,
    most_description_bytes,
    structure_bytes,
)
from afm_dist.compression.plan import TABLE, Plan
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import Activation, FieldRanks
from afm_dist.methods.low_rank.ranks import GivenRanks, in_words, ranks_of
from afm_dist.runs.run import STAGE_AGAIN, Run, Stage
from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.stages.compression import MOMENTS, counted_moments, plan_for
from afm_dist.stages.rows import PUBLISHED, Rows
from afm_dist.stages.scoring import Scoring
from afm_dist.stages.training import Models
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sensitivity import SAMPLE_BATCH, SAMPLE_ROWS, output_sensitivity
from afm_dist.statistics.statistics import Statistics

RANKS = "ranks.json"


class Tried(TypedDict):
    """One allocation, and what it scored where it was."""

    name: str
    ranks: dict[str, int | dict[str, int] | None]
    bytes: int
    error: float
    errors: dict[str, float]
    validation_auc: NotRequired[float]
    validation_log_loss: NotRequired[float]


class ChosenRanks(TypedDict):
    """The best allocation, and all that were tried."""

    budget: int
    ranks: dict[str, int | dict[str, int] | None]
    bytes: int
    error: float
    errors: dict[str, float]
    chosen: str
    tried: list[Tried]


# From so many shards, to see what the logit depends on.
SAMPLE_SHARDS = 16
# The allocations that are scored: by how many times the error of the tables may count more, or less, than
# predicted. All of it is to first order, and a ReLU between factors is no part of it.
EMPHASES = (10.0, 0.1)
PREDICTED, ONE_DIMENSION = "as-predicted", "one-dimension"
_TIMES = {f"tables-times-{times:g}": times for times in EMPHASES}
# What a reader is told of them, behind their names.
EXPLAINED = {
    **{name: f"counts the errors of the tables {times:g} times" for name, times in _TIMES.items()},
    ONE_DIMENSION: "has one rank for all fields",
}
WAYS = len(EMPHASES) + 2


@dataclass(frozen=True, kw_only=True)
class Target:
    """How large a compressed checkpoint may be, and how its layers are compressed.

    Attributes:
        bytes: Of its files.
        ratio: Or how many times smaller than the uncompressed one's they shall be.
        activation: Between the factors of linear layers.
        kappa: Of the shifted ReLU.
        rows: What becomes of the table's rows besides.
        field_ranks: Whether the fields have one rank in common, or each its own.
        refine: Whether a few allocations are scored on the validation split.
    """

    bytes: int | None = None
    ratio: float | None = None
    activation: Activation
    kappa: float
    rows: Rows = PUBLISHED
    field_ranks: FieldRanks = "uniform"
    refine: bool = False

    def budget(self, before: int) -> int:
        """Bytes, for a checkpoint that had so many."""
        if self.bytes is not None:
            return self.bytes
        assert self.ratio is not None
        return int(before / self.ratio)

    def plan(self, model: nn.Module) -> Plan:
        """Plan what the budget is spent on, of rank 1."""
        return plan_for(model, activation=self.activation, kappa=self.kappa, rows=self.rows)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Ranks for a budget.

    Attributes:
        stage: That chose them.
        linears: Of the linear layers.
        tables: Of the tables.
        budget: Bytes that the compressed checkpoint may have.
    """

    stage: Stage
    linears: GivenRanks
    tables: GivenRanks
    budget: int


def choose_ranks(
    run: Run,
    data: Stage,
    manifest: Manifest,
    baseline: Models,
    statistics: Stage,
    target: Target,
    *,
    options: ResourceOptions = AUTOMATIC,
) -> Ranks:
    """The ranks with the least predicted error within a budget, of the layers and the tables together.

    To refine them a few allocations, the same errors counted differently, are scored on the validation split
    as they are before fine-tuning; that of the least log loss is taken. What was scored stays scored when
    the stage is interrupted.

    Args:
        run: The run directory.
        data: The dataset's stage.
        manifest: The dataset.
        baseline: The uncompressed model.
        statistics: Moments of its linear layers.
        target: The budget.
        options: What tasks that score are given.

    Raises:
        OptionError: no ranks fit, or nothing needs to be compressed.
    """
    source = baseline.checkpoints["baseline"]
    before = size_on_disk(source)
    budget = target.budget(before)

    def work(folder: str) -> None:
        model, config = from_pretrained(source), load_config(source)
        whole, rounded = target.plan(model), target.rows.rounded(model)
        rest, field_ranks = _checked(config, whole, rounded, budget, before, target.field_ranks)
        if field_ranks != target.field_ranks:
            console.say("  one rank for all fields: the budget has no room for the names of ranks by field")
        counted = counted_moments(model, manifest, target.rows.absorb)
        moments = load_moments(statistics.file(MOMENTS)) | counted
        names = [entry.name for entry in whole.entries]
        sensitivity = logit_sensitivity(model, manifest, names, absorb=target.rows.absorb)
        known = Statistics(moments, sensitivity)
        found: dict[str, Allocation] = {}
        for name, (way, emphasis) in _ways(field_ranks, target.refine).items():
            try:
                one = allocate(
                    config,
                    whole,
                    known,
                    budget - rest,
                    always=rounded,
                    by_field=way == "each",
                    emphasis={TABLE: emphasis},
                )
            except OptionError:
                if name == PREDICTED:
                    raise
                # One dimension for all fields does not become as small as dimensions of their own.
                continue
            if all(one.plan != other.plan for other in found.values()):
                found[name] = one
        splits = ["validation"]
        scoring = Scoring(run, manifest, source, folder, moments, sensitivity, splits=splits, options=options)
        tried = found if len(found) > 1 else {}
        with scoring.remembering("ranks", models=len(tried)) as score:
            scores = {name: score(name, "afm", one.plan) for name, one in tried.items()}
            _write(folder, budget, found, scores)

    stage = run.stage(
        "ranks",
        work,
        config={
            "budget": budget,
            "activation": target.activation,
            "kappa": target.kappa,
            "field_ranks": target.field_ranks,
            "refine": target.refine,
            **target.rows.changes(),
        },
        inputs=[data, baseline.stage, statistics],
    )
    ranks = dict(storage.read_json(stage.file(RANKS), ChosenRanks, fix=STAGE_AGAIN)["ranks"])
    tables = {TABLE: ranks.pop(TABLE)}
    return Ranks(stage=stage, linears=GivenRanks(ranks=ranks), tables=GivenRanks(ranks=tables), budget=budget)


def _write(
    folder: str, budget: int, found: Mapping[str, Allocation], scores: Mapping[str, Mapping[str, Any]]
) -> None:
    """The best of some allocations, and what is known of the others."""
    chosen = min(scores, key=lambda name: scores[name]["validation_log_loss"], default=PREDICTED)
    best = found[chosen]
    console.say(
        f"  for {budget:,} bytes: {in_words(ranks_of(best.configs))}; predicted root mean square change of "
        f"the logit {math.sqrt(best.error):.3g}, without what a ReLU between factors cuts"
    )
    tried = [
        {"name": name, **_plain(one)}
        | {key: scores[name][key] for key in ("validation_auc", "validation_log_loss") if name in scores}
        for name, one in found.items()
    ]
    storage.write_json(
        storage.join(folder, RANKS), {"budget": budget, **_plain(best), "chosen": chosen, "tried": tried}
    )


def _plain(one: Allocation) -> dict[str, Any]:
    """Give an allocation as plain values."""
    return {
        "ranks": ranks_of(one.configs),
        "bytes": one.bytes,
        "error": one.error,
        "errors": dict(one.errors),
    }


def _ways(field_ranks: FieldRanks, refine: bool) -> dict[str, tuple[FieldRanks, float]]:
    """The allocations that are worth a look, by name; the first is the predicted best."""
    ways: dict[str, tuple[FieldRanks, float]] = {PREDICTED: (field_ranks, 1.0)}
    if refine:
        ways |= {name: (field_ranks, times) for name, times in _TIMES.items()}
        if field_ranks == "each":
            ways[ONE_DIMENSION] = ("uniform", 1.0)
    return ways


def check_target(config: ModelConfig, checkpoint: str | None, target: Target) -> None:
    """Refuse a budget that cannot be met, before anything is started.

    Args:
        config: The uncompressed model.
        checkpoint: Where it is; None: it will be trained.
        target: The budget.

    Raises:
        OptionError: says what is possible.
    """
    with torch.device("meta"):
        model = config.build()
    whole, rounded = target.plan(model), target.rows.rounded(model)
    before = (
        size_on_disk(checkpoint)
        if checkpoint
        else structure_bytes(config, Plan()) + description_bytes(config, Plan())
    )
    _checked(config, whole, rounded, target.budget(before), before, target.field_ranks)


def _checked(
    config: ModelConfig, plan: Plan, rounded: Plan, budget: int, before: int, field_ranks: FieldRanks
) -> tuple[int, FieldRanks]:
    """Refuse a budget that cannot be met, or that the uncompressed checkpoint meets.

    Returns:
        What a compressed checkpoint holds besides tensors: names, the plan, the layout of the file. And
        ``field_ranks``, or ``uniform`` where a tiny model has no room for the names of ranks by field.
    """
    if budget >= before:
        raise OptionError(
            f"a budget of {budget:,} bytes: the uncompressed checkpoint has {before:,}, nothing needs to be "
            "compressed; give less to --target-bytes, or more to --target-ratio"
        )
    besides = before - structure_bytes(config, Plan()) - description_bytes(config, Plan())
    rests: dict[FieldRanks, int] = {
        way: besides + most_description_bytes(config, plan, always=rounded, by_field=way == "each")
        for way in (field_ranks, "uniform")
    }
    least = {
        way: least_bytes(config, plan, always=rounded, by_field=way == "each") + rest
        for way, rest in rests.items()
    }
    way = field_ranks if least[field_ranks] <= budget else min(least, key=least.__getitem__)
    check_budget(config, plan, budget, always=rounded, besides=rests[way], by_field=way == "each")
    return rests[way], way


def logit_sensitivity(
    model: nn.Module, manifest: Manifest, names: Sequence[str], *, absorb: bool = False
) -> dict[str, Tensor]:
    """E[ggᵀ] of the outputs of some modules, over a sample of the training rows.

    With ``absorb`` the table's rows have the first-order weight as their last coordinate.
    """
    return output_sensitivity(
        model, _sample(manifest), names, forward=forward_batch, absorbing=[TABLE] if absorb else ()
    )


def _sample(manifest: Manifest) -> Iterator[Batch]:
    """Some training rows from all over the split."""
    shards = manifest.shards("train")
    shards = shards[:: -(-len(shards) // SAMPLE_SHARDS)]
    batches = -(-SAMPLE_ROWS // (len(shards) * SAMPLE_BATCH))
    for shard in shards:
        yield from islice(read_batches(manifest, [shard], SAMPLE_BATCH), batches)
