"""A grid of sizes: all scored before fine-tuning, from the same statistics, and a few of them chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.compression.budget import (
    allocate,
    description_bytes,
    least_bytes,
    most_description_bytes,
    structure_bytes,
)
from afm_dist.compression.plan import Plan
from afm_dist.compression.registry import variants
from afm_dist.compression.variant import FieldRanks, SweptModel, Variant
from afm_dist.errors import OptionError
from afm_dist.runs.run import STAGE_FIX, Stage
from afm_dist.runtime import console
from afm_dist.search.pareto import pareto
from afm_dist.search.scoring import PlanScorer, Scored, describe_sizes
from afm_dist.search.search import Problem, Search, on_meta
from afm_dist.statistics.moments_file import save_moments
from afm_dist.statistics.sensitivity_file import save_sensitivity

if TYPE_CHECKING:
    from afm_dist.planning.capacity import Estimate
    from afm_dist.planning.estimate import Costs

POINTS = "points.json"
MOMENTS = "moments.safetensors"
SENSITIVITY = "sensitivity.safetensors"
BASELINE, BUDGET = "baseline", "budget"
RATIOS = (3.0, 5.0, 10.0)


def swept() -> list[Variant]:
    """List the variants that a sweep tries: those that it may choose first."""
    return sorted((own for own in variants().values() if own.swept), key=lambda own: own.reference)


def allocating() -> Variant:
    """Give the variant by whose predicted errors a sweep allocates bytes."""
    return next(own for own in variants().values() if own.allocates)


def choosable() -> list[str]:
    """Name the methods of models that a sweep may choose."""
    return [*(own.name for own in swept() if not own.reference), BUDGET]


@dataclass(frozen=True, kw_only=True)
class GridSearch(Search):
    """Scores every size of every variant, and chooses the best model of each of a few sizes.

    For each model that none beats on the validation split, variants that are there to compare apart, there is
    also one of no more bytes whose sizes were allocated. A point that was scored stays scored when the search
    is interrupted.

    Attributes:
        ratios: How many times smaller the models are that are chosen, one each.
        field_ranks: Whether the fields have one rank in common, or each its own, where ranks are allocated.
        most: How many models are scored, at most.
    """

    stage: ClassVar[str] = "sweep"

    ratios: Sequence[float] = ()
    field_ranks: FieldRanks = "uniform"
    most: int = 0

    def of(self, config: ModelConfig) -> GridSearch:
        """Give the same with ratios in place of the defaults, ascending.

        Args:
            config: The uncompressed model, with all its fields.

        Raises:
            OptionError: a size that does not fit the model, or a ratio that none reaches.
        """
        model = on_meta(config)
        points = {own.name: [*own.points(model, self.request)] for own in self.variants}
        ours = [point for own in self.variants if not own.reference for point in points[own.name]]
        rounded = self.rows.rounded(model)
        whole = allocating().template(model, self.request)
        described = most_description_bytes(config, whole, always=rounded)
        before = structure_bytes(config, Plan()) + description_bytes(config, Plan())
        least = min(structure_bytes(config, point.plan + rounded) for point in ours)
        reached = before / (least + described)
        if self.ratios and max(self.ratios) > reached:
            raise OptionError(
                f"--sweep-ratios {max(self.ratios):g}: the smallest model that is tried is {reached:.2f} "
                "times smaller; ask for less, or give smaller --sweep-ranks or --sweep-dims"
            )
        ratios = sorted({*self.ratios}) or [ratio for ratio in RATIOS if ratio <= reached]
        # Of a model that does not become so small, the smallest.
        ratios = ratios or [max(1.0, (1 + reached) / 2)]
        most = 1 + sum(map(len, points.values())) + max(map(len, points.values()))
        return replace(self, ratios=ratios, most=most)

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give the sample for the sensitivity, and the scoring of all points."""
        return [
            costs.sensitivity(self.stage),
            costs.scoring(self.stage, "validation", passes=self.most),
        ]

    def fingerprint(self, problem: Problem) -> dict[str, Any]:
        """Give what is tried; of what was scored a few are chosen afterwards."""
        del problem
        tried = asdict(self.request) | {"field_ranks": self.field_ranks, **self.rows.changes()}
        return dict(storage.plain(tried | {"variants": [own.name for own in self.variants]}))

    def propose(self, problem: Problem, folder: str) -> None:
        """Score the baseline and each point on the validation split."""
        save_moments(storage.join(folder, MOMENTS), problem.moments)
        save_sensitivity(storage.join(folder, SENSITIVITY), problem.sensitivity)
        rounded = self.rows.rounded(problem.model)
        with problem.scoring(folder, "validation").remembering(self.stage, models=self.most) as score:
            score(BASELINE, BASELINE, Plan())
            tried = [
                (score(point.name, own.name, point.plan + rounded), own, point)
                for own in self.variants
                for point in own.points(problem.model, self.request)
            ]
            ours = [(found, own, point) for found, own, point in tried if not own.reference]
            for index in front_of([found for found, *_ in ours]):
                found, own, point = ours[index]
                self._allocate(problem, score, Plan.from_json(found["plan"]), own, point)
            storage.write_json(storage.join(folder, POINTS), score.found)

    def chosen(self, stage: Stage) -> Mapping[str, Plan]:
        """Choose one model of each size, of those that were scored."""
        points = read_points(stage)
        chosen = choose(points, self.ratios)
        for name, point in chosen.items():
            words = describe_sizes(point["ranks"])
            console.info(f"  {name}, {points[0]['bytes'] / point['bytes']:.1f} times smaller: {words}")
        return {name: Plan.from_json(point["plan"]) for name, point in chosen.items()}

    def _allocate(
        self, problem: Problem, score: PlanScorer, plan: Plan, own: Variant, point: SweptModel
    ) -> None:
        """Score the model of no more bytes than another's whose sizes were allocated, where there is one."""
        config, rounded = problem.config, self.rows.rounded(problem.model)
        weighted = allocating().template(problem.model, self.request)
        most, room = structure_bytes(config, rounded), structure_bytes(config, plan)
        room += description_bytes(config, plan)
        # A tiny model has no room for the names of ranks by field, or of any.
        for by_field in dict.fromkeys((self.field_ranks == "each", False)):
            budget = room - most_description_bytes(config, weighted, always=rounded, by_field=by_field)
            # What the model meets without any ranks is no budget.
            if least_bytes(config, weighted, always=rounded, by_field=by_field) <= budget < most:
                break
        else:
            return
        best = allocate(
            config,
            weighted,
            problem.known,
            budget,
            always=rounded,
            by_field=by_field,
            model=problem.model,
        )
        score(point.name.replace(own.name, BUDGET, 1), BUDGET, best.plan)


def read_points(stage: Stage) -> list[Scored]:
    """Read what was scored of each point."""
    return storage.read_json(stage.file(POINTS), list[Scored], fix=STAGE_FIX)


def front_of(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """Find the points that none beats in bytes and validation AUC, as indices by ascending size."""
    return pareto([point["bytes"] for point in points], [point["validation_auc"] for point in points])


def choose(points: Sequence[Mapping[str, Any]], ratios: Sequence[float]) -> dict[str, Mapping[str, Any]]:
    """Choose for each ratio the model (SVD apart) of best validation AUC that is so many times smaller.

    Args:
        points: With the baseline among them.
        ratios: Bytes of the baseline over those of the model, at least.

    Returns:
        By name, each once; a ratio that no model reaches is left out, with a warning, but for the smallest
        model where none is reached.
    """
    ours = choosable()
    (before,) = (point["bytes"] for point in points if point["method"] == BASELINE)
    chosen: dict[str, Mapping[str, Any]] = {}
    for ratio in sorted(ratios):
        small = [p for p in points if p["method"] in ours and p["bytes"] * ratio <= before]
        if not small:
            least = min(point["bytes"] for point in points)
            console.warn(
                f"--sweep-ratios {ratio:g}: no model that was tried is so small (the smallest is "
                f"{before / least:.1f} times smaller); try smaller --sweep-ranks or --sweep-dims"
            )
            continue
        best = max(small, key=lambda point: (point["validation_auc"], -point["bytes"]))
        chosen[best["name"]] = best
    if not chosen:
        smallest = min((p for p in points if p["method"] in ours), key=lambda point: point["bytes"])
        chosen[smallest["name"]] = smallest
    return chosen
