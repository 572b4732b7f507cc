"""What every search has in common: the model that it searches for, and what it leaves in its stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.plan import TABLE, Plan
from afm_dist.compression.variant import Request, Variant
from afm_dist.dataset.counts import read_counts
from afm_dist.dataset.manifest import Manifest
from afm_dist.pipelines.context import Context
from afm_dist.runs.run import STAGE_FIX, Stage
from afm_dist.search.rows import PUBLISHED, RowOptions
from afm_dist.search.scoring import PlanScorer
from afm_dist.statistics.from_counts import moments_from_counts
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.sample import Sample
from afm_dist.statistics.sensitivity import output_sensitivity
from afm_dist.statistics.statistics import Statistics

if TYPE_CHECKING:
    from afm_dist.planning.capacity import Estimate
    from afm_dist.planning.estimate import Costs

PLANS = "plans.json"


@dataclass(frozen=True)
class Problem:
    """A model to find plans for, and what is known of it; each is computed when it is first needed.

    Attributes:
        context: Of the job.
        source: Checkpoint of the uncompressed model.
        linear_moments: Of the outputs of its linear layers.
        absorb: Whether the table's moments have the first-order weight as their last coordinate.
    """

    context: Context
    source: str
    linear_moments: Mapping[str, Moments]
    absorb: bool = False

    @cached_property
    def config(self) -> ModelConfig:
        """Say what the model is."""
        return load_config(self.source)

    @cached_property
    def model(self) -> nn.Module:
        """Load the model."""
        return from_pretrained(self.source)

    @cached_property
    def bytes(self) -> int:
        """Count the bytes of its checkpoint."""
        return size_on_disk(self.source)

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Give the moments of its linear layers and, from the counts, of the table's fields."""
        counted = counted_moments(self.model, self.context.manifest, self.absorb)
        return {**self.linear_moments, **counted}

    @cached_property
    def sensitivity(self) -> dict[str, Tensor]:
        """Measure the sensitivity of the logit to the outputs of the layers and the table."""
        names = [*dict.fromkeys(name.partition("[")[0] for name in self.moments)]
        return logit_sensitivity(self.model, self.context.manifest, names, absorb=self.absorb)

    @property
    def known(self) -> Statistics:
        """Give moments, sensitivity and counts together."""
        return Statistics(self.moments, self.sensitivity, counts_of(self.context.manifest))

    def scoring(self, folder: str, split: str) -> PlanScorer:
        """Give what scores plans on a split, and remembers it in a folder."""
        return PlanScorer(
            self.context.run,
            self.context.manifest,
            self.source,
            folder,
            self.known,
            splits=[split],
            options=self.context.options,
        )


@dataclass(frozen=True, kw_only=True)
class Search(ABC):
    """Proposes plans: what becomes of the linear layers and the table of a model.

    Attributes:
        request: What is asked of the variants.
        variants: Those that are compared.
        rows: What becomes of the table's rows besides.
    """

    stage: ClassVar[str]

    request: Request
    variants: Sequence[Variant]
    rows: RowOptions = PUBLISHED

    def check(self, config: ModelConfig, checkpoint: str | None) -> None:  # noqa: B027
        """Refuse what cannot be found, before anything is started.

        Args:
            config: The uncompressed model with all its fields.
            checkpoint: Where it is; None: it will be trained.

        Raises:
            OptionError: says what is possible.
        """

    def budget(self, before: int) -> int | None:
        """Give the bytes that a compressed checkpoint may have; None: as many as it takes.

        Args:
            before: Bytes of the uncompressed one.
        """
        del before
        return None

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give what the search takes; nothing where that is not worth a line."""
        del costs
        return ()

    @abstractmethod
    def fingerprint(self, problem: Problem) -> dict[str, Any]:
        """Give what the result depends on besides the model and the data."""

    @abstractmethod
    def propose(self, problem: Problem, folder: str) -> None:
        """Find plans, and write them into a folder with what a report says of them.

        Raises:
            OptionError: there are none.
        """

    def chosen(self, stage: Stage) -> Mapping[str, Plan]:
        """Give what was found: plans by the variant whose sizes they are, or by the model that comes of them.

        Args:
            stage: Whose folder it was written into.
        """
        return read_plans(stage)

    def notes(self, stage: Stage, leader: str) -> list[str]:
        """Say what a reader of the report must know of the search.

        Args:
            stage: Whose folder it wrote into.
            leader: The variant whose sizes what ships has.
        """
        del stage, leader
        return []

    @property
    def leaders(self) -> list[Variant]:
        """List the variants that have sizes of their own, or lend them to one that is compared, each once."""
        from afm_dist.compression.registry import variants

        every = variants()
        return list({leader: every[leader] for leader in map(leader_of, self.variants)}.values())


def leader_of(variant: Variant) -> str:
    """Name the variant whose sizes a variant takes; itself, where it has its own."""
    return variant.leader or variant.name


def on_meta(config: ModelConfig) -> nn.Module:
    """Build the uncompressed model without its numbers."""
    with torch.device("meta"):
        return config.build()


def write_plans(folder: str, plans: Mapping[str, Plan]) -> None:
    """Write plans by name, for review, and for whoever applies them."""
    storage.write_json(storage.join(folder, PLANS), {name: plan.to_json() for name, plan in plans.items()})


def read_plans(stage: Stage) -> dict[str, Plan]:
    """Read the plans that a search left.

    Raises:
        DataError: they are damaged.
    """
    path = stage.file(PLANS)
    found = storage.read_json(path, dict[str, dict[str, Any]], fix=STAGE_FIX)
    return {name: Plan.from_json(plan, source=path) for name, plan in found.items()}


def counted_moments(model: nn.Module, manifest: Manifest, absorb: bool) -> dict[str, Moments]:
    """Give the moments of the table's fields from the counts; ``absorb``: with the first-order weights."""
    from afm_dist.compression.targets import first_order

    return moments_from_counts(
        model, manifest, TABLE, absorbs=first_order(model, "absorb") if absorb else None
    )


def counts_of(manifest: Manifest) -> dict[str, Tensor]:
    """Give how often each id of a field of the table occurs in the training split, shape (V,), integers."""
    return {field_key(TABLE, field): counts for field, counts in read_counts(manifest).items()}


def logit_sensitivity(
    model: nn.Module, manifest: Manifest, names: Sequence[str], *, absorb: bool = False
) -> dict[str, Tensor]:
    """Measure E[ggᵀ] of the outputs of some modules, over a sample of the training rows.

    With ``absorb`` the table's rows have the first-order weight as their last coordinate.
    """
    rows = Sample.of(manifest).read(manifest, manifest.shards("train"))
    return output_sensitivity(model, rows, names, forward=forward_batch, absorbing=[TABLE] if absorb else ())
