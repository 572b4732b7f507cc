"""Named ways of compressing a model that jobs compare: of ``--methods``, of a sweep, rows of a report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from afm_dist.compression.plan import Plan
from afm_dist.statistics.moments import Moments

# Whether the fields of a table have one size in common, or each its own, where sizes are chosen.
FieldRanks = Literal["uniform", "each"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the options of a job ask of its variants. Each heeds what concerns it.

    Attributes:
        mlp_rank: Rank of the linear layers.
        mlp_energy: Instead of it, the share of the variance of their outputs to keep.
        embedding_dim: Dimension of the tables' codes.
        activation: What stands between two factors of a linear layer.
        kappa: Of the shifted ReLU, in standard deviations.
        absorb: Whether tables take in the first-order weights of their fields.
        rounded: Whether the rows of tables are rounded besides.
        linear_ranks: Ranks of the linear layers that a sweep tries; none: a choice of its own.
        embedding_dims: Dimensions that it tries; none: a choice of its own.
    """

    mlp_rank: int = 1
    mlp_energy: float | None = None
    embedding_dim: int = 1
    activation: str = "none"
    kappa: float = 2.0
    absorb: bool = False
    rounded: bool = False
    linear_ranks: Sequence[int] = ()
    embedding_dims: Sequence[int] = ()


class SweptModel(NamedTuple):
    """One model of a sweep: its name, and what leads to it from the uncompressed model."""

    name: str
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Variant(ABC):
    """A named way of compressing a model, registered by the folder of its method.

    A report has the rows ``<name>-mlp`` and ``<name>-emb`` of it, before and after fine-tuning.

    Attributes:
        name: As ``--methods`` has it.
        words: What a report says of it.
        leader: The variant whose sizes it takes, so that only the method differs; None: it has its own.
        needs_sensitivity: Whether it needs the sensitivity of the logit.
        needs_counts: Whether what becomes of tables depends on how often each id occurs.
        behind_compressed: Whether a linear layer is compressed by what it gives behind compressed layers.
        reference: Whether it is there to compare with: a sweep shows it and never chooses it.
        swept: Whether a sweep tries it.
        budgeted: Whether a budget chooses its sizes; else it is as large as it is.
        from_scratch: Whether all that it stores can be trained from scratch.
        allocates: Whether its predicted errors are those of its models, so that a sweep allocates by them.
    """

    name: str
    words: str
    leader: str | None = None
    needs_sensitivity: bool = False
    needs_counts: bool = True
    behind_compressed: bool = False
    reference: bool = False
    swept: bool = True
    budgeted: bool = True
    from_scratch: bool = True
    allocates: bool = False

    @property
    def linears(self) -> str:
        """Name the row of the model with compressed linear layers."""
        return f"{self.name}-mlp"

    @property
    def tables(self) -> str:
        """Name the row of the model with compressed tables, too."""
        return f"{self.name}-emb"

    def check(self, model: nn.Module, request: Request) -> None:  # noqa: B027
        """Refuse a request that does not fit a model, before anything is started.

        Args:
            model: The uncompressed model, on the meta device.
            request: What is asked.

        Raises:
            OptionError: names the option, its value and what would fit.
        """

    def warn(self, model: nn.Module, request: Request) -> None:  # noqa: B027
        """Warn of what a request does not achieve, before anything is started.

        Args:
            model: The uncompressed model with all its fields, on the meta device.
            request: What is asked.
        """

    @abstractmethod
    def template(self, model: nn.Module, request: Request) -> Plan:
        """Plan all that it can compress of a model, of any size: what a budget is spent on."""

    def preparations(self, model: nn.Module, request: Request) -> Sequence[Plan]:
        """List what may be done before a budget is spent on the template; the best of them is taken.

        A template that stacks on low rank names ranks here, and is itself applied to what they leave.
        """
        del model, request
        return [Plan()]

    @abstractmethod
    def plan(self, model: nn.Module, moments: Mapping[str, Moments], request: Request) -> Plan:
        """Plan the sizes that are asked for.

        Args:
            model: The uncompressed model.
            moments: Of the outputs of its linear layers.
            request: What is asked.
        """

    def like(self, plan: Plan) -> Plan:
        """Give its own plan with the sizes of its leader's, or with those it has itself."""
        return plan

    def points(self, model: nn.Module, request: Request) -> Iterator[SweptModel]:
        """Yield the models that a sweep tries.

        Args:
            model: The uncompressed model; of its values nothing is needed.
            request: What is asked.

        Raises:
            OptionError: names the option with a size that does not fit the model.
        """
        del model, request
        yield from ()

    def ablations(self, plan: Plan) -> Mapping[str, Plan]:
        """Give, by the end of their names, other settings of its linear layers that a report may compare."""
        del plan
        return {}
