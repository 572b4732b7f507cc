"""A budget of bytes: the sizes with the least predicted change of the logit, and a few near them to try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NotRequired, TypedDict

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.budget import (
    Allocation,
    Allocator,
    check_budget,
    description_bytes,
    least_bytes,
    most_description_bytes,
    predicted_error,
    structure_bytes,
)
from afm_dist.compression.plan import TABLE, Plan
from afm_dist.compression.registry import variants
from afm_dist.compression.rewrite import compress_carrying_
from afm_dist.compression.variant import FieldRanks, Variant
from afm_dist.errors import OptionError
from afm_dist.runs.run import STAGE_FIX, Stage
from afm_dist.runtime import console
from afm_dist.search.scoring import describe_sizes, sizes
from afm_dist.search.search import Problem, Search, on_meta, write_plans

if TYPE_CHECKING:
    from afm_dist.planning.capacity import Estimate
    from afm_dist.planning.estimate import Costs

RANKS = "ranks.json"
# Allocations of a budget, each of less by what the one before was too much.
TRIES = 8


class Tried(TypedDict):
    """One allocation, and what it scored where it was."""

    name: str
    ranks: dict[str, int | dict[str, int] | str | None]
    bytes: int
    error: float
    errors: dict[str, float]
    validation_auc: NotRequired[float]
    validation_log_loss: NotRequired[float]


class ChosenRanks(TypedDict):
    """The best allocation, and all that were tried."""

    budget: int
    ranks: dict[str, int | dict[str, int] | str | None]
    bytes: int
    error: float
    errors: dict[str, float]
    chosen: str
    tried: list[Tried]
    others: NotRequired[dict[str, Any]]


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
class BudgetPlan:
    """An allocation, and what is done before it.

    Attributes:
        before: What is done before.
        lost: Predicted mean square change of the logit by that.
        allocation: Of the model that there is then.
    """

    before: Plan
    lost: float
    allocation: Allocation

    @property
    def error(self) -> float:
        """Give the predicted mean square change of the logit."""
        return self.lost + self.allocation.error

    @property
    def chosen(self) -> Plan:
        """Give what is done, without what is done whatever is chosen."""
        return self.before + self.allocation.chosen

    @property
    def plan(self) -> Plan:
        """Give all that is done."""
        return self.before + self.allocation.plan


def total_bytes(config: ModelConfig, plan: Plan) -> int:
    """Count the bytes of tensors and their description once a plan is applied."""
    return structure_bytes(config, plan) + description_bytes(config, plan)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model that something was done to, and what allocates its budget.

    Attributes:
        before: What was done.
        lost: Predicted mean square change of the logit by that.
        allocator: Of the model that there is then.
        budget: Bytes of its tensors.
        field_ranks: Whether there is room for sizes by field.
        config: The uncompressed model.
        besides: Bytes that its checkpoint has besides tensors and their description.
        total: Bytes of the whole checkpoint that are allowed.
    """

    before: Plan
    lost: float
    allocator: Allocator
    budget: int
    field_ranks: FieldRanks
    config: ModelConfig
    besides: int
    total: int

    def allocate(self, way: FieldRanks, emphasis: float) -> BudgetPlan:
        """Allocate the budget, with the errors of the tables counted so many times.

        Raises:
            OptionError: nothing fits.
        """
        by_field, room = way == self.field_ranks == "each", self.budget
        for _ in range(TRIES):
            one = self.allocator.allocate(room, by_field=by_field, emphasis={TABLE: emphasis})
            found = BudgetPlan(before=self.before, lost=self.lost, allocation=one)
            # What a checkpoint holds besides tensors was guessed: names of what was chosen may be longer.
            over = self.besides + total_bytes(self.config, found.plan) - self.total
            if over <= 0:
                return found
            room -= over
        raise OptionError(
            f"a budget of {self.total:,} bytes: nothing that was tried fits with the names in its files; "
            "give more to --target-bytes, or less to --target-ratio"
        )


@dataclass(frozen=True, kw_only=True)
class BudgetSearch(Search):
    """Takes the sizes with the least predicted error within a budget, of the layers and the tables together.

    To refine them a few allocations, the same errors counted differently, are scored on the validation split
    as they are before fine-tuning; that of the least log loss is taken. What was scored stays scored when
    the search is interrupted.

    Attributes:
        bytes: How large a compressed checkpoint may be.
        ratio: Or how many times smaller than the uncompressed one.
        field_ranks: Whether the fields have one rank in common, or each its own.
        refine: Whether a few allocations are scored.
    """

    stage: ClassVar[str] = "ranks"

    bytes: int | None = None
    ratio: float | None = None
    field_ranks: FieldRanks = "uniform"
    refine: bool = False

    def budget(self, before: int) -> int:
        """Give the bytes, for a checkpoint that had so many."""
        if self.bytes is not None:
            return self.bytes
        assert self.ratio is not None
        return int(before / self.ratio)

    def check(self, config: ModelConfig, checkpoint: str | None) -> None:
        """Refuse a budget that cannot be met."""
        model = on_meta(config)
        before = (
            size_on_disk(checkpoint)
            if checkpoint
            else structure_bytes(config, Plan()) + description_bytes(config, Plan())
        )
        if not self._budgeted:
            names = ",".join(leader.name for leader in self.leaders)
            others = ", ".join(own.name for own in variants().values() if own.budgeted)
            raise OptionError(
                f"--methods {names}: none of them has sizes that a budget could choose; add one of {others}"
            )
        rounded = self.rows.rounded(model)
        for leader in self._budgeted:
            whole, refusals = leader.template(model, self.request), []
            prepared = leader.preparations(model, self.request)
            for plan in prepared:
                try:
                    self._checked(replace(config, plan=plan), whole, rounded, before)
                except OptionError as refusal:
                    refusals.append(refusal)
            if len(refusals) == len(prepared):
                raise refusals[-1]

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give the sample for the sensitivity, and the scoring of allocations."""
        scored = [costs.scoring(self.stage, "validation", passes=WAYS)] if self.refine else []
        return [costs.sensitivity(self.stage), *scored]

    def fingerprint(self, problem: Problem) -> dict[str, Any]:
        """Give the budget, and what may be chosen for it."""
        return {
            "budget": self.budget(problem.bytes),
            "activation": self.request.activation,
            "kappa": self.request.kappa,
            "field_ranks": self.field_ranks,
            "refine": self.refine,
            "leaders": [leader.name for leader in self.leaders],
            **self.rows.changes(),
        }

    def propose(self, problem: Problem, folder: str) -> None:
        """Allocate the budget, for each leader by itself."""
        budget = self.budget(problem.bytes)
        found = {leader.name: self._allocations(problem, leader, budget) for leader in self._budgeted}
        others = {
            leader.name: leader.plan(problem.model, problem.linear_moments, self.request)
            for leader in self.leaders
            if not leader.budgeted
        }
        models = sum(len(tried) for tried in found.values() if len(tried) > 1)
        chosen: dict[str, dict[str, Any]] = {}
        with problem.scoring(folder, "validation").remembering(self.stage, models=models) as score:
            for leader, tried in found.items():
                scored = tried if len(tried) > 1 else {}
                scores = {
                    name: score(_scored_name(leader, name, found), leader, one.plan)
                    for name, one in scored.items()
                }
                chosen[leader] = _chosen(budget, tried, scores)
            plans = {leader: found[leader][own["chosen"]].chosen for leader, own in chosen.items()}
            write_plans(folder, plans | others)
            _write(folder, chosen)

    def notes(self, stage: Stage, leader: str) -> list[str]:
        """Describe what was predicted and scored."""
        budgeted = [own.name for own in self._budgeted]
        return [budget_note(stage, leader, first=budgeted[0])] if leader in budgeted else []

    @property
    def _budgeted(self) -> list[Variant]:
        return [leader for leader in self.leaders if leader.budgeted]

    def _allocations(self, problem: Problem, leader: Variant, budget: int) -> dict[str, BudgetPlan]:
        """Give the allocations that are worth a look, the predicted best first.

        Raises:
            OptionError: none fits, or nothing needs to be compressed.
        """
        best: tuple[Prepared, BudgetPlan] | None = None
        refusals: list[OptionError] = []
        for before in leader.preparations(problem.model, self.request):
            try:
                prepared = self._prepared(problem, leader, before, budget)
                found = prepared.allocate(self.field_ranks, 1.0)
            except OptionError as refusal:
                refusals.append(refusal)
                continue
            if before.entries:
                words = describe_sizes(sizes(before))
                console.info(f"  {words}: predicted change of the logit {math.sqrt(found.error):.3g}")
            if best is None or found.error < best[1].error:
                best = prepared, found
        if best is None:
            raise refusals[-1]
        prepared, first = best
        tried = {PREDICTED: first}
        for name, (way, emphasis) in _ways(self.field_ranks, self.refine).items():
            try:
                one = prepared.allocate(way, emphasis)
            except OptionError:
                # One dimension for all fields does not become as small as dimensions of their own.
                continue
            if all(one.plan != other.plan for other in tried.values()):
                tried[name] = one
        return tried

    def _prepared(self, problem: Problem, leader: Variant, before: Plan, budget: int) -> Prepared:
        """Give what allocates the budget of a model that is prepared."""
        config = replace(problem.config, plan=before)
        whole, rounded = leader.template(problem.model, self.request), self.rows.rounded(problem.model)
        rest, field_ranks = self._checked(config, whole, rounded, problem.bytes)
        if field_ranks != self.field_ranks:
            console.info("  one rank for all fields: the budget has no room for the names of ranks by field")
        model, known, lost = problem.model, problem.known, 0.0
        if before.entries:
            lost = predicted_error(problem.config, before, known)
            model = from_pretrained(problem.source)
            known = compress_carrying_(model, before, known)
        allocator = Allocator(config, whole, known, always=rounded, model=model)
        return Prepared(
            before=before,
            lost=lost,
            allocator=allocator,
            budget=budget - rest,
            field_ranks=field_ranks,
            config=problem.config,
            besides=problem.bytes - total_bytes(problem.config, Plan()),
            total=budget,
        )

    def _checked(self, config: ModelConfig, plan: Plan, rounded: Plan, before: int) -> tuple[int, FieldRanks]:
        """Refuse a budget that cannot be met, or that the uncompressed checkpoint meets.

        Returns:
            What a compressed checkpoint holds besides tensors: names, the plan, the layout of the file. And
            ``field_ranks``, or ``uniform`` where a tiny model has no room for the names of ranks by field.
        """
        budget = self.budget(before)
        if budget >= before:
            raise OptionError(
                f"a budget of {budget:,} bytes: the uncompressed checkpoint has {before:,}, nothing needs "
                "to be compressed; give less to --target-bytes, or more to --target-ratio"
            )
        plain = replace(config, plan=Plan())
        besides = before - structure_bytes(plain, Plan()) - description_bytes(plain, Plan())
        rests: dict[FieldRanks, int] = {
            way: besides + most_description_bytes(config, plan, always=rounded, by_field=way == "each")
            for way in (self.field_ranks, "uniform")
        }
        least = {
            way: least_bytes(config, plan, always=rounded, by_field=way == "each") + rest
            for way, rest in rests.items()
        }
        way = self.field_ranks if least[self.field_ranks] <= budget else min(least, key=least.__getitem__)
        check_budget(config, plan, budget, always=rounded, besides=rests[way], by_field=way == "each")
        return rests[way], way


def _scored_name(leader: str, name: str, found: Mapping[str, Any]) -> str:
    """Name a scored model; with its leader where there are several."""
    return name if len(found) == 1 else f"{leader}-{name}"


def _chosen(
    budget: int, found: Mapping[str, BudgetPlan], scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Give the best of some allocations, and what is known of the others."""
    chosen = min(scores, key=lambda name: scores[name]["validation_log_loss"], default=PREDICTED)
    best = found[chosen]
    console.info(
        f"  for {budget:,} bytes: {_in_words(best)}; predicted root mean square change of "
        f"the logit {math.sqrt(best.error):.3g}, without what a ReLU between factors cuts"
    )
    tried: list[Any] = [
        {"name": name, **_plain(one)}
        | {key: scores[name][key] for key in ("validation_auc", "validation_log_loss") if name in scores}
        for name, one in found.items()
    ]
    return {"budget": budget, **_plain(best), "chosen": chosen, "tried": tried}


def _write(folder: str, chosen: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what a report says of it."""
    (content, *others) = chosen.items()
    result: dict[str, Any] = dict(content[1])
    if others:
        result["others"] = dict(others)
    storage.write_json(storage.join(folder, RANKS), result)


def _in_words(one: BudgetPlan) -> str:
    """Write ``mlp.3 to 64, embedding as it is``."""
    done = describe_sizes(sizes(one.chosen))
    left = [f"{name} as it is" for name in one.allocation.configs if name not in one.chosen.modules]
    return ", ".join([*([done] if done else []), *left])


def _plain(one: BudgetPlan) -> dict[str, Any]:
    """Give an allocation as plain values."""
    errors = dict(one.allocation.errors)
    for name in one.before.modules:
        errors[name] = errors.get(name, 0.0) + one.lost
    return {
        "ranks": {**dict.fromkeys(one.allocation.configs), **sizes(one.chosen)},
        "bytes": one.allocation.bytes,
        "error": one.error,
        "errors": errors,
    }


def _ways(field_ranks: FieldRanks, refine: bool) -> dict[str, tuple[FieldRanks, float]]:
    """Choose the allocations worth scoring, by name; the first is the predicted best."""
    ways: dict[str, tuple[FieldRanks, float]] = {PREDICTED: (field_ranks, 1.0)}
    if refine:
        ways |= {name: (field_ranks, times) for name, times in _TIMES.items()}
        if field_ranks == "each":
            ways[ONE_DIMENSION] = ("uniform", 1.0)
    return ways


def budget_note(stage: Stage, leader: str, *, first: str) -> str:
    """Describe how a budget was spent."""
    written = storage.read_json(stage.file(RANKS), ChosenRanks, fix=STAGE_FIX)
    chosen = (
        written
        if leader == first
        else storage.as_typed(written.get("others", {})[leader], ChosenRanks, source=stage.file(RANKS))
    )
    (as_predicted,) = [one for one in chosen["tried"] if one["name"] == PREDICTED]
    errors = ", ".join(f"{name} {math.sqrt(error):.2g}" for name, error in as_predicted["errors"].items())
    predicted = (
        f"the least predicted change of the logit (root mean square, by module: {errors}), to first order, "
        "before fine-tuning and without what a ReLU between factors cuts"
    )
    scored = [one for one in chosen["tried"] if "validation_log_loss" in one]
    if not scored:
        return f"Ranks for a budget of {chosen['budget']:,} bytes: those with {predicted}."
    losses = ", ".join(
        f"{one['name']} {one['validation_log_loss']:.5f} (AUC {one['validation_auc']:.4f})" for one in scored
    )
    explained = [f"{PREDICTED} has {predicted}"]
    explained += [f"{name} {EXPLAINED[name]}" for one in scored if (name := one["name"]) in EXPLAINED]
    return (
        f"Ranks for a budget of {chosen['budget']:,} bytes: {chosen['chosen']}, which of {len(scored)} "
        f"allocations has the least log loss on the validation split before fine-tuning: {losses}. "
        f"{'; '.join(explained)}."
    )
