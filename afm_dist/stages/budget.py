"""The stage that chooses ranks for a budget of bytes, and the refusal of budgets that cannot be met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from afm_dist import console, storage
from afm_dist.checkpoint import ModelConfig, from_pretrained, load_config, size_on_disk
from afm_dist.compression.budget import allocate, check_budget, structure_bytes
from afm_dist.compression.plan import Activation, Plan, PlanEntry
from afm_dist.compression.ranks import GivenRanks
from afm_dist.compression.sensitivity import SAMPLE_BATCH, SAMPLE_ROWS, output_sensitivity
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import OptionError
from afm_dist.runs import Run, Stage
from afm_dist.stages.compression import MOMENTS, TABLE, absorbing, counted_moments, entries_of
from afm_dist.stages.training import Models
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.observe import forward_batch

RANKS = "ranks.json"
# From so many shards, to see what the logit depends on.
SAMPLE_SHARDS = 16
# What a compressed module adds to a checkpoint besides numbers, at most.
ENTRY_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Target:
    """How large a compressed checkpoint may be, and how its layers are compressed.

    Attributes:
        bytes: Of its files.
        ratio: Or how many times smaller than the uncompressed one's they shall be.
        activation: Between the factors of linear layers.
        kappa: Of the shifted ReLU.
        absorb: Whether the table takes in the first-order weights.
    """

    bytes: int | None = None
    ratio: float | None = None
    activation: Activation
    kappa: float
    absorb: bool = False

    def budget(self, before: int) -> int:
        """Bytes, for a checkpoint that had so many."""
        if self.bytes is not None:
            return self.bytes
        assert self.ratio is not None
        return int(before / self.ratio)

    def entries(self, model: nn.Module) -> list[PlanEntry]:
        """What the budget is spent on, of rank 1."""
        return entries_of(model, activation=self.activation, kappa=self.kappa, absorb=self.absorb)


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
) -> Ranks:
    """The ranks with the least predicted error within a budget, of the layers and the tables together.

    Args:
        run: The run directory.
        data: The dataset's stage.
        manifest: The dataset.
        baseline: The uncompressed model.
        statistics: Moments of its linear layers.
        target: The budget.

    Raises:
        OptionError: no ranks fit, or nothing needs to be compressed.
    """
    source = baseline.checkpoints["baseline"]
    before = size_on_disk(source)
    budget = target.budget(before)

    def work(folder: str) -> None:
        model, config = from_pretrained(source), load_config(source)
        entries = target.entries(model)
        rest = _checked(config, entries, budget, before)
        counted = counted_moments(model, manifest, target.absorb)
        moments = load_moments(statistics.file(MOMENTS)) | counted
        names = [entry.name for entry in entries]
        sensitivity = logit_sensitivity(model, manifest, names, absorb=target.absorb)
        found = allocate(config, entries, moments, sensitivity, budget - rest)
        ranks = ", ".join(f"{n} {'as it is' if k is None else f'to {k}'}" for n, k in found.ranks.items())
        console.say(
            f"  for {budget:,} bytes: {ranks}; predicted root mean square change of the logit "
            f"{math.sqrt(found.error):.3g}, without what a ReLU between factors cuts"
        )
        storage.write_json(storage.join(folder, RANKS), {"budget": budget, **asdict(found)})

    stage = run.stage(
        "ranks",
        work,
        config={
            "budget": budget,
            "activation": target.activation,
            "kappa": target.kappa,
            **absorbing(target.absorb),
        },
        inputs=[data, baseline.stage, statistics],
    )
    ranks = dict(storage.read_json(stage.file(RANKS))["ranks"])
    tables = {TABLE: ranks.pop(TABLE)}
    return Ranks(stage=stage, linears=GivenRanks(ranks=ranks), tables=GivenRanks(ranks=tables), budget=budget)


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
        entries = target.entries(config.build())
    before = size_on_disk(checkpoint) if checkpoint else structure_bytes(config, Plan())
    _checked(config, entries, target.budget(before), before)


def _checked(config: ModelConfig, entries: Sequence[PlanEntry], budget: int, before: int) -> int:
    """Refuse a budget that cannot be met, or that the uncompressed checkpoint meets.

    Returns:
        What a compressed checkpoint holds besides tensors: names, the plan, the layout of the file.
    """
    if budget >= before:
        raise OptionError(
            f"a budget of {budget:,} bytes: the uncompressed checkpoint has {before:,}, nothing needs to be "
            "compressed; give less to --target-bytes, or more to --target-ratio"
        )
    rest = before - structure_bytes(config, Plan()) + ENTRY_BYTES * len(entries)
    check_budget(config, entries, budget, besides=rest)
    return rest


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
