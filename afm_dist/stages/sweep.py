"""Stages of a sweep: many ranks from one statistics pass, scored before fine-tuning, and the few worth it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.budget import (
    allocate,
    description_bytes,
    least_bytes,
    most_description_bytes,
    structure_bytes,
)
from afm_dist.compression.plan import TABLE, Plan
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import DEFAULT_KAPPA, Activation, Factors, FieldRanks
from afm_dist.methods.low_rank.grid import default_dims, default_ranks, grid, pareto
from afm_dist.methods.low_rank.ranks import in_words, using
from afm_dist.runs.run import STAGE_AGAIN, Run, Stage
from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.stages.budget import logit_sensitivity
from afm_dist.stages.compression import (
    MOMENTS,
    SENSITIVITY,
    counted_moments,
    plan_for,
    target_linears,
    write_compressed,
)
from afm_dist.stages.rows import PUBLISHED, Rows
from afm_dist.stages.scoring import Scored, Scoring
from afm_dist.stages.training import Models
from afm_dist.statistics.moments_file import load_moments, save_moments
from afm_dist.statistics.outputs import outputs_of
from afm_dist.statistics.sensitivity_file import load_sensitivity, save_sensitivity
from afm_dist.statistics.statistics import Statistics

POINTS = "points.json"
METHODS: tuple[Factors, ...] = ("afm", "weighted", "svd")
BASELINE, BUDGET = "baseline", "budget"
# What a user may take: SVD is there to compare.
OURS = ("afm", "weighted", BUDGET)
# The largest loss of validation AUC to the control that is taken for none, and the paper's aim.
NO_LOSS = 0.0002
RATIOS = (3.0, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is tried.

    Attributes:
        linear_ranks: Of the linear layers; none: powers of two.
        embedding_dims: Of the tables; none: powers of two.
        ratios: How many times smaller the models are that are fine-tuned, one each; none: those of 3, 5
            and 10 that can be reached.
        activation: Between the factors of linear layers.
        kappa: Of the shifted ReLU.
        rows: What becomes of the tables' rows besides.
        field_ranks: Whether the fields have one rank in common, or each its own, where ranks are chosen.
    """

    linear_ranks: Sequence[int] = ()
    embedding_dims: Sequence[int] = ()
    ratios: Sequence[float] = ()
    activation: Activation = "shifted"
    kappa: float = DEFAULT_KAPPA
    rows: Rows = PUBLISHED
    field_ranks: FieldRanks = "uniform"

    def of(self, config: ModelConfig) -> Sweep:
        """The same with ranks and ratios in place of the defaults, ascending.

        Args:
            config: The uncompressed model, with all its fields.

        Raises:
            OptionError: a rank that is larger than a layer, or a ratio that no rank reaches.
        """
        with torch.device("meta"):
            model = config.build()
        least, dim = (
            min(width for name in names for width in _widths(model, name))
            for names in (target_linears(model), [TABLE])
        )
        ranks, dims = list(self.linear_ranks), list(self.embedding_dims)
        for rank in ranks:
            if not 1 <= rank <= least:
                raise OptionError(f"--sweep-ranks {rank}: the ranks lie in 1..{least}, the narrowest layer")
        for width in dims:
            if not 1 <= width <= dim:
                raise OptionError(f"--sweep-dims {width}: the dimensions lie in 1..{dim}, the model's own")
        found = replace(
            self,
            linear_ranks=sorted({*ranks}) or default_ranks(least),
            embedding_dims=sorted({*dims}) or default_dims(dim),
        )
        reached = found.smallest(config)
        if self.ratios and max(self.ratios) > reached:
            raise OptionError(
                f"--sweep-ratios {max(self.ratios):g}: the smallest model that is tried is {reached:.2f} "
                "times smaller; ask for less, or give smaller --sweep-ranks or --sweep-dims"
            )
        ratios = sorted({*self.ratios}) or [ratio for ratio in RATIOS if ratio <= reached]
        # Of a model that does not become so small, the smallest.
        return replace(found, ratios=ratios or [max(1.0, (1 + reached) / 2)])

    def smallest(self, config: ModelConfig) -> float:
        """How many times smaller the smallest model is that is tried."""
        with torch.device("meta"):
            model = config.build()
        whole, rounded = self.plan(model), self.rows.rounded(model)
        points = grid(("afm",), self.linear_ranks, self.embedding_dims)
        least = min(structure_bytes(config, point.plan(whole, table=TABLE) + rounded) for point in points)
        described = most_description_bytes(config, whole, always=rounded)
        before = structure_bytes(config, Plan()) + description_bytes(config, Plan())
        return before / (least + described)

    def plan(self, model: nn.Module) -> Plan:
        """What is compressed, of rank 1."""
        return plan_for(model, activation=self.activation, kappa=self.kappa, rows=self.rows)

    @property
    def points(self) -> int:
        """How many models are scored, at most."""
        uniform = (len(self.linear_ranks) + 1) * (len(self.embedding_dims) + 1) - 1
        return 1 + (len(METHODS) + 1) * uniform


def _widths(model: nn.Module, name: str) -> Iterable[int]:
    module = model.get_submodule(name)
    return outputs_of(module).widths(name, module).values()


def try_ranks(
    run: Run,
    data: Stage,
    manifest: Manifest,
    baseline: Models,
    statistics: Stage,
    sweep: Sweep,
    *,
    options: ResourceOptions = AUTOMATIC,
) -> Stage:
    """Score the baseline and each point of the grid, before fine-tuning, on the validation split.

    For each uniform model that none beats on the validation split (SVD apart), also the one of no more bytes
    whose ranks ``allocate`` chose, with weighted factors. No model is written; a point that was scored stays
    scored when the stage is interrupted.

    Args:
        run: The run directory.
        data: The dataset's stage.
        manifest: The dataset.
        baseline: The uncompressed model.
        statistics: Moments of its linear layers.
        sweep: With its ranks.
        options: What tasks are given.
    """
    source = baseline.checkpoints[BASELINE]

    def work(folder: str) -> None:
        model, config = from_pretrained(source), load_config(source)
        counted = counted_moments(model, manifest, sweep.rows.absorb)
        moments = load_moments(statistics.file(MOMENTS)) | counted
        save_moments(storage.join(folder, MOMENTS), moments)
        whole, rounded = sweep.plan(model), sweep.rows.rounded(model)
        names = [entry.name for entry in whole.entries]
        sensitivity = logit_sensitivity(model, manifest, names, absorb=sweep.rows.absorb)
        save_sensitivity(storage.join(folder, SENSITIVITY), sensitivity)
        splits = ["validation"]
        scoring = Scoring(run, manifest, source, folder, moments, sensitivity, splits=splits, options=options)
        with scoring.remembering("sweep", models=sweep.points) as score:
            score(BASELINE, BASELINE, Plan())
            uniform = [
                (score(point.name, point.method, point.plan(whole, table=TABLE) + rounded), point)
                for point in grid(METHODS, sweep.linear_ranks, sweep.embedding_dims)
            ]
            ours = [(found, point) for found, point in uniform if point.method in OURS]
            weighted, known = using(whole, factors="weighted"), Statistics(moments, sensitivity)
            most = structure_bytes(config, rounded)
            for index in front_of([found for found, _ in ours]):
                found, point = ours[index]
                plan = Plan.from_json(found["plan"])
                room = structure_bytes(config, plan) + description_bytes(config, plan)
                # A tiny model has no room for the names of ranks by field, or of any.
                for by_field in dict.fromkeys((sweep.field_ranks == "each", False)):
                    described = most_description_bytes(config, weighted, always=rounded, by_field=by_field)
                    budget = room - described
                    least = least_bytes(config, weighted, always=rounded, by_field=by_field)
                    # What the model meets without any ranks is no budget.
                    if least <= budget < most:
                        break
                else:
                    continue
                best = allocate(config, weighted, known, budget, always=rounded, by_field=by_field)
                name = point.name.replace(point.method, BUDGET, 1)
                score(name, BUDGET, best.plan)
            storage.write_json(storage.join(folder, POINTS), score.found)

    return run.stage(
        "sweep",
        work,
        config=storage.plain(
            {key: value for key, value in asdict(sweep).items() if key not in ("ratios", "rows")}
            | sweep.rows.changes()
        ),
        inputs=[data, baseline.stage, statistics],
    )


def measure_points(
    run: Run,
    data: Stage,
    manifest: Manifest,
    baseline: Models,
    tried: Stage,
    *,
    options: ResourceOptions = AUTOMATIC,
) -> Stage:
    """Score the same models on the test split: nothing is chosen by it, only the report shows it.

    Args:
        run: The run directory.
        data: The dataset's stage.
        manifest: The dataset.
        baseline: The uncompressed model.
        tried: The stage that scored them on the validation split.
        options: What tasks are given.
    """

    def work(folder: str) -> None:
        scoring = Scoring(
            run,
            manifest,
            baseline.checkpoints[BASELINE],
            folder,
            load_moments(tried.file(MOMENTS)),
            load_sensitivity(tried.file(SENSITIVITY)),
            splits=["test"],
            options=options,
        )
        points = storage.read_json(tried.file(POINTS), list[Scored], fix=STAGE_AGAIN)
        with scoring.remembering("sweep-test", models=len(points)) as score:
            for point in points:
                score(point["name"], point["method"], Plan.from_json(point["plan"]))
            storage.write_json(storage.join(folder, POINTS), score.found)

    return run.stage("sweep-test", work, inputs=[data, baseline.stage, tried])


def front_of(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the points that none beats in bytes and validation AUC, by ascending size."""
    return pareto([point["bytes"] for point in points], [point["validation_auc"] for point in points])


def choose(points: Sequence[Mapping[str, Any]], ratios: Sequence[float]) -> dict[str, Mapping[str, Any]]:
    """For each ratio the model (SVD apart) with the best validation AUC that is so many times smaller.

    Args:
        points: With the baseline among them.
        ratios: Bytes of the baseline over those of the model, at least.

    Returns:
        By name, each once; a ratio that no model reaches is left out, with a warning, but for the smallest
        model where none is reached.
    """
    (before,) = (point["bytes"] for point in points if point["method"] == BASELINE)
    chosen: dict[str, Mapping[str, Any]] = {}
    for ratio in sorted(ratios):
        small = [p for p in points if p["method"] in OURS and p["bytes"] * ratio <= before]
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
        smallest = min((p for p in points if p["method"] in OURS), key=lambda point: point["bytes"])
        chosen[smallest["name"]] = smallest
    return chosen


def rewrite_chosen(run: Run, baseline: Models, tried: Stage, sweep: Sweep) -> Models:
    """Write the chosen models, before fine-tuning."""
    points = storage.read_json(tried.file(POINTS), list[Scored], fix=STAGE_AGAIN)
    chosen = choose(points, sweep.ratios)
    source = baseline.checkpoints[BASELINE]

    def work(folder: str) -> None:
        moments = load_moments(tried.file(MOMENTS))
        sensitivity = load_sensitivity(tried.file(SENSITIVITY))
        for name, point in chosen.items():
            plan = Plan.from_json(point["plan"])
            write_compressed(source, storage.join(folder, name), plan, moments, sensitivity)
            ranks = in_words(point["ranks"])
            console.say(f"  {name}, {points[0]['bytes'] / point['bytes']:.1f} times smaller: {ranks}")

    stage = run.stage("rewrite-sweep", work, config={"chosen": list(chosen)}, inputs=[baseline.stage, tried])
    return Models(stage=stage, checkpoints={name: stage.file(name) for name in chosen}, histories={})


def worth_shipping(tuned: Models, chosen: Models) -> str:
    """The smallest fine-tuned model that is as good as the control on the validation split.

    Where none is, the best one.

    Args:
        tuned: The chosen models and ``control`` after fine-tuning.
        chosen: The models before it.
    """
    aim = tuned.histories["control"].best.validation_auc - NO_LOSS
    scores = {name: tuned.histories[name].best.validation_auc for name in chosen.checkpoints}
    sizes = {name: size_on_disk(tuned.checkpoints[name]) for name in scores}
    good = [name for name, score in scores.items() if score >= aim]
    if good:
        return min(good, key=lambda name: sizes[name])
    return max(scores, key=lambda name: (scores[name], -sizes[name]))
