"""The step that takes the statistics of each linear layer behind compressed layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.sequential import compress_sequentially_
from afm_dist.compression.targets import linears_of
from afm_dist.compression.variant import Variant
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.planning.capacity import Estimate
from afm_dist.planning.estimate import Costs
from afm_dist.runs.run import Stage
from afm_dist.runtime import console
from afm_dist.search.search import leader_of
from afm_dist.stages.searching import MOMENTS, SearchResult
from afm_dist.stages.training import Model
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.keys import module_name
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import load_moments, save_moments


@dataclass(kw_only=True)
class SequentialStatistics(Step[Stage]):
    """Collects the moments of each linear layer once those before it are compressed: a Ray pass for each.

    The first has those that there are. The sizes are those of the layers in the uncompressed model, so that
    the rows have as many bytes.

    Attributes:
        model: The uncompressed model.
        statistics: Moments of its linear layers.
        found: The plans.
        variant: Whose plan is applied.
    """

    model: Model
    statistics: Step[Stage]
    found: Step[SearchResult]
    variant: Variant

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a pass for each layer but the first."""
        return [costs.statistics("statistics-sequential", sequential=True)]

    def work(self, context: Context) -> Stage:
        """Collect and write them."""
        plan = linears_of(self.variant.like(self.found.result.plans[leader_of(self.variant)]))
        statistics = self.statistics.result

        def work(folder: str) -> None:
            whole = load_moments(statistics.file(MOMENTS))
            # Folders are named after the modules, which a file names.
            storage.check_inside(folder, plan.modules, source=statistics.file(MOMENTS))

            def collect(model: nn.Module, name: str) -> Mapping[str, Moments]:
                if name == plan.entries[0].name:
                    return {key: own for key, own in whole.items() if module_name(key) == name}
                console.info(f"  {name}, behind the compressed layers")
                return collect_moments(
                    model,
                    context.manifest,
                    [name],
                    folder=storage.join(folder, name),
                    keep=True,
                    options=context.options,
                    emit=context.run.event,
                )

            moments = compress_sequentially_(from_pretrained(self.model.checkpoint), plan, collect)
            save_moments(storage.join(folder, MOMENTS), moments)
            for entry in plan.entries:
                storage.remove(storage.join(folder, entry.name))

        return context.run.stage(
            "statistics-sequential",
            work,
            config={"plan": plan.to_json()},
            inputs=[context.data, self.model.step.result.stage, statistics],
        )


def statistics_behind(
    model: Model, statistics: Step[Stage], found: Step[SearchResult], variants: Sequence[Variant]
) -> SequentialStatistics | None:
    """Give the step that collects them; None where no variant needs them."""
    needing = [variant for variant in variants if variant.behind_compressed]
    if not needing:
        return None
    return SequentialStatistics(model=model, statistics=statistics, found=found, variant=needing[0])
