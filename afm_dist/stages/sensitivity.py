"""Steps that measure how the logit depends on errors: E[ggᵀ] of outputs, over a sample of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afm_dist import storage
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.plan import TABLE
from afm_dist.compression.targets import target_linears
from afm_dist.compression.variant import Variant
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.planning.capacity import Estimate
from afm_dist.planning.estimate import Costs
from afm_dist.runs.run import Stage
from afm_dist.search.rows import absorbing
from afm_dist.search.search import logit_sensitivity
from afm_dist.stages.searching import SENSITIVITY
from afm_dist.stages.training import Model, Models
from afm_dist.statistics.sensitivity_file import save_sensitivity


@dataclass(kw_only=True)
class Sensitivity(Step[Stage]):
    """Measures the sensitivity of the logit to the linear layers' outputs, or to the embeddings.

    Attributes:
        stage: Name of the stage.
        model: The model.
        of_tables: Whether it is that to the embeddings.
        absorb: Whether it is also that to their first-order weights.
    """

    stage: str
    model: Model
    of_tables: bool = False
    absorb: bool = False

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a sample on the driver."""
        return [costs.sensitivity(self.stage)]

    def work(self, context: Context) -> Stage:
        """Measure and write it."""

        def work(folder: str) -> None:
            model = from_pretrained(self.model.checkpoint)
            names = [TABLE] if self.of_tables else target_linears(model)
            found = logit_sensitivity(model, context.manifest, names, absorb=self.absorb)
            save_sensitivity(storage.join(folder, SENSITIVITY), found)

        inputs = [context.data, self.model.step.result.stage]
        return context.run.stage(self.stage, work, config=absorbing(self.absorb), inputs=inputs)


def linear_sensitivity(model: Model, variants: Sequence[Variant]) -> Sensitivity | None:
    """Give the step that measures it for the linear layers; None where no variant needs it."""
    if not any(variant.needs_sensitivity for variant in variants):
        return None
    return Sensitivity(stage="sensitivity-mlp", model=model)


def table_sensitivity(
    tuned: Step[Models], variants: Sequence[Variant], *, absorb: bool = False
) -> dict[str, Sensitivity]:
    """Give the steps that measure it for the tables of the variants that need it, by name.

    With ``absorb`` every variant does: it says in which unit first-order weights count beside embeddings.
    """
    return {
        variant.name: Sensitivity(
            stage=f"sensitivity-embedding-{variant.name}",
            model=Model(tuned, variant.linears),
            of_tables=True,
            absorb=absorb,
        )
        for variant in variants
        if absorb or variant.needs_sensitivity
    }
