"""Steps that compress: statistics and rewriting, of the linear layers, of the tables, or of both at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import check_files, size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_plan, save_pretrained
from afm_dist.compression.plan import TABLE, Plan
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.compression.targets import linears_of, tables_of, target_linears
from afm_dist.compression.variant import Request, Variant
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError, StageError
from afm_dist.large_tables.stored import stored_tensors
from afm_dist.modules.tensors import named_tensors
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.planning.capacity import Estimate
from afm_dist.planning.estimate import Costs
from afm_dist.runs.run import Stage
from afm_dist.runtime import console
from afm_dist.search.rows import PUBLISHED, RowOptions, absorbing
from afm_dist.search.search import Problem, counted_moments, counts_of, leader_of, on_meta
from afm_dist.stages.searching import MOMENTS, SENSITIVITY, SearchResult, read_known
from afm_dist.stages.training import Model, Models
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import load_moments, save_moments
from afm_dist.statistics.partials import remove_partials
from afm_dist.statistics.sensitivity_file import load_sensitivity, save_sensitivity
from afm_dist.statistics.statistics import Statistics

STREAM_TOLERANCE = 1e-9
Left = Step[Models] | Step[Stage] | None


def check_model(
    config: ModelConfig,
    variants: Sequence[Variant],
    request: Request,
    rows: RowOptions = PUBLISHED,
    *,
    checkpoint: str | None = None,
) -> None:
    """Refuse requests that do not fit a model, and models that cannot be compressed, before anything starts.

    Args:
        config: The uncompressed model.
        variants: What is compared.
        request: What is asked of them.
        rows: What else becomes of the table's rows.
        checkpoint: Where the model is; None: it will be trained.

    Raises:
        OptionError: names the option, the layer and its width; or the model is compressed already, or holds
            other numbers than float32.
        DataError: a file of the checkpoint is missing or damaged.
    """
    if config.plan.modules:
        done = ", ".join(config.plan.modules)
        raise OptionError(
            f"--checkpoint: the model is compressed already ({done}); give the uncompressed one"
        )
    if checkpoint is not None:
        _check_types(on_meta(config), checkpoint)
    rounded = rows.rounded(on_meta(config))
    for variant in variants:
        variant.check(on_meta(config), request)
        model = on_meta(config)
        with torch.device("meta"):
            restructure_(model, tables_of(variant.template(model, request)))
            try:
                restructure_(model, rounded)
            except OptionError as error:
                options = "--codes bfloat16" if rows.codes == "bfloat16" else "--linear-terms bfloat16"
                raise OptionError(
                    f"{options} and --methods {variant.name} exclude each other: {variant.name} stores the "
                    f"rows in another way itself ({error}); leave one of them out"
                ) from error


def _check_types(model: nn.Module, checkpoint: str) -> None:
    """Refuse stored tensors of another type than the model's: budgets count bytes by those."""
    check_files(checkpoint)
    stored = stored_tensors(checkpoint)
    for name, tensor in named_tensors(model).items():
        if name in stored and stored[name].dtype != tensor.dtype:
            found, needed = (
                str(dtype).removeprefix("torch.") for dtype in (stored[name].dtype, tensor.dtype)
            )
            raise OptionError(
                f"--checkpoint: tensor {name} of {checkpoint} is {found}, the model's is {needed}; save the "
                "model with all numbers in float32: save_pretrained(model.float(), …)"
            )


@dataclass(kw_only=True)
class LinearStatistics(Step[Stage]):
    """Collects E[y] and Cov(y) of the linear layers over the whole training split, on Ray.

    Attributes:
        model: The uncompressed model.
    """

    model: Model

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a pass over the training split."""
        return [costs.statistics("statistics-mlp")]

    def work(self, context: Context) -> Stage:
        """Collect and write them."""

        def work(folder: str) -> None:
            model = from_pretrained(self.model.checkpoint)
            moments = collect_moments(
                model,
                context.manifest,
                target_linears(model),
                folder=folder,
                keep=True,
                options=context.options,
                emit=context.run.event,
            )
            digest = save_moments(storage.join(folder, MOMENTS), moments)
            remove_partials(folder)
            console.info(f"  {context.manifest.rows('train'):,} rows, digest of the moments {digest[:16]}")

        inputs = [context.data, self.model.step.result.stage]
        return context.run.stage("statistics-mlp", work, inputs=inputs)


@dataclass(kw_only=True)
class RewriteLinears(Step[Models]):
    """Rewrites the linear layers as each variant does it: ``afm-mlp`` and its like (paper eq. 5).

    With ``settings`` also in those that the first variant names, as ``afm-mlp-<setting>``.

    Attributes:
        model: The uncompressed model.
        statistics: Moments of its linear layers.
        found: The plans.
        variants: What is compared.
        sensitivity: Of the logit to their outputs, where a variant needs it.
        behind: Moments of the layers behind compressed ones, where a variant needs them.
        settings: How many other settings of the first variant are written, too; 0: none.
    """

    model: Model
    statistics: Step[Stage]
    found: Step[SearchResult]
    variants: Sequence[Variant]
    sensitivity: Step[Stage] | None = None
    behind: Step[Stage] | None = None
    settings: int = 0

    @property
    def count(self) -> int:
        """Count the models."""
        return len(self.variants) + self.settings

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give the rewriting of all models."""
        return [costs.rewriting("rewrite-mlp", self.count)]

    def moments_of(self, variant: Variant) -> Stage:
        """Give the stage with the moments that a variant goes by."""
        step = self.behind if variant.behind_compressed else self.statistics
        assert step is not None
        return step.result

    def plans(self) -> dict[str, tuple[Variant, Plan]]:
        """Give what becomes of the model, by row."""
        plans = self.found.result.plans
        own = {variant.linears: (variant, _own(plans, variant)) for variant in self.variants}
        first, plan = next(iter(own.values()))
        others = first.ablations(plan) if self.settings else {}
        own |= {f"{first.linears}-{end}": (first, other) for end, other in others.items()}
        return {row: (variant, linears_of(plan)) for row, (variant, plan) in own.items()}

    def work(self, context: Context) -> Models:
        """Rewrite and write them."""
        plans, source = self.plans(), self.model.checkpoint

        def work(folder: str) -> None:
            sensitivity = None
            if self.sensitivity is not None:
                sensitivity = load_sensitivity(self.sensitivity.result.file(SENSITIVITY))
            for row, (variant, plan) in plans.items():
                moments = load_moments(self.moments_of(variant).file(MOMENTS))
                write_compressed(source, storage.join(folder, row), plan, moments, sensitivity)
            _, plan = next(iter(plans.values()))
            words = ", ".join(f"{entry.name} {entry.config.in_words}" for entry in plan.entries)
            console.info(f"  {words or 'no layer is compressed'}")

        steps: list[Left] = [self.model.step, self.statistics, self.sensitivity, self.behind]
        return _rewritten(context, "rewrite-mlp", work, plans, steps, {})


@dataclass(kw_only=True)
class TableStatistics(Step[Stage]):
    """Computes E[e] and Cov(e) of every field from the counts (paper eq. 7), for each variant's tables.

    Attributes:
        tuned: Makes the models with compressed linear layers.
        variants: What is compared.
        stream_check: Whether a pass over the shards must agree to 1e-9, for the tables of the first variant.
        absorb: Whether the first-order weights are one more coordinate, of which there is no such pass.
    """

    tuned: Step[Models]
    variants: Sequence[Variant]
    stream_check: bool = False
    absorb: bool = False

    def __post_init__(self) -> None:
        assert not (self.stream_check and self.absorb)

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a pass over the training split, where there is one."""
        return [costs.statistics("statistics-embedding")] if self.stream_check else []

    def file_of(self, variant: Variant) -> str:
        """Name the file with the moments that a variant goes by: its own, or those of the first one."""
        own = variant.needs_counts and variant is not self.variants[0]
        return f"moments-{variant.name}.safetensors" if own else MOMENTS

    def work(self, context: Context) -> Stage:
        """Compute and write them."""
        # Last the first one's, which the others may go by.
        by_file = {self.file_of(variant): variant for variant in reversed(self.variants)}
        own = [name for name in by_file if name != MOMENTS]
        own = [name for name in (self.file_of(variant) for variant in self.variants) if name in own]

        def work(folder: str) -> None:
            checkpoints = self.tuned.result.checkpoints
            for name in own:
                model = from_pretrained(checkpoints[by_file[name].linears])
                moments = counted_moments(model, context.manifest, self.absorb)
                save_moments(storage.join(folder, name), moments)
            model = from_pretrained(checkpoints[self.variants[0].linears])
            moments = counted_moments(model, context.manifest, self.absorb)
            if self.stream_check:
                streamed = collect_moments(
                    model,
                    context.manifest,
                    [TABLE],
                    folder=folder,
                    keep=True,
                    options=context.options,
                    emit=context.run.event,
                )
                _check_agreement(moments, streamed)
            save_moments(storage.join(folder, MOMENTS), moments)
            remove_partials(folder)

        return context.run.stage(
            "statistics-embedding",
            work,
            config={
                "stream_check": self.stream_check,
                "methods": [by_file[name].name for name in own],
                **absorbing(self.absorb),
            },
            inputs=[context.data, self.tuned.result.stage],
        )


def _check_agreement(counted: Mapping[str, Moments], streamed: Mapping[str, Moments]) -> None:
    worst = 0.0
    for name, moments in counted.items():
        other = streamed[name]
        scale = float(moments.scatter.norm()) or 1.0
        worst = max(worst, float((moments.scatter - other.scatter).norm()) / scale)
        if moments.count != other.count or worst > STREAM_TOLERANCE:
            raise DataError(
                f"{name}: counts and streaming disagree (rows {moments.count} and {other.count}, relative "
                f"difference {worst:.1e}); the vocabulary does not belong to these shards, prepare again"
            )
    console.info(f"  streaming agrees with the counts: largest relative difference {worst:.1e}")


@dataclass(kw_only=True)
class RewriteTables(Step[Models]):
    """Rewrites the tables as each variant does it, ``afm-emb`` from ``afm-mlp`` (paper eq. 10 and 12).

    Attributes:
        tuned: Makes the models with compressed linear layers.
        statistics: Moments of their tables.
        found: The plans.
        variants: What is compared.
        sensitivity: Of the logit to the embeddings, by variant that needs it; of all, to absorb.
        rows: What else becomes of the tables' rows.

    Raises:
        StageError: a checkpoint has more bytes than the budget.
    """

    tuned: Step[Models]
    statistics: TableStatistics
    found: Step[SearchResult]
    variants: Sequence[Variant]
    sensitivity: Mapping[str, Step[Stage]] = field(default_factory=dict)
    rows: RowOptions = PUBLISHED

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give the rewriting of all models."""
        return [costs.rewriting("rewrite-embedding", len(self.variants))]

    def work(self, context: Context) -> Models:
        """Rewrite and write them."""
        tuned, found = self.tuned.result, self.found.result
        rounded = self.rows.rounded(on_meta(load_config(tuned.checkpoints[self.variants[0].linears])))
        plans = {
            variant.tables: (variant, tables_of(_own(found.plans, variant)) + rounded)
            for variant in self.variants
        }

        def work(folder: str) -> None:
            for row, (variant, plan) in plans.items():
                moments = load_moments(self.statistics.result.file(self.statistics.file_of(variant)))
                step, written = self.sensitivity.get(variant.name), storage.join(folder, row)
                sensitivity = None if step is None else load_sensitivity(step.result.file(SENSITIVITY))
                known = Statistics(moments, sensitivity, counts_of(context.manifest))
                write_compressed(tuned.checkpoints[variant.linears], written, plan, known)
                _check_budget(written, variant, found.budget)

        steps: list[Left] = [self.tuned, self.statistics, *self.sensitivity.values()]
        return _rewritten(context, "rewrite-embedding", work, plans, steps, {"budget": found.budget})


@dataclass(kw_only=True)
class StatisticsAtOnce(Step[Stage]):
    """Gathers what the linear layers and the table of one model are compressed by, both at once.

    Attributes:
        model: The uncompressed model.
        statistics: Moments of its linear layers.
        variants: What is compared.
        absorb: Whether the first-order weights are one more coordinate of the table's rows.
    """

    model: Model
    statistics: Step[Stage]
    variants: Sequence[Variant]
    absorb: bool = False

    @property
    def sensitive(self) -> bool:
        """Tell whether the sensitivity of the logit is measured."""
        return self.absorb or any(variant.needs_sensitivity for variant in self.variants)

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a sample on the driver, where there is one."""
        return [costs.sensitivity("statistics")] if self.sensitive else []

    def work(self, context: Context) -> Stage:
        """Compute and write it."""
        statistics = self.statistics.result

        def work(folder: str) -> None:
            linears = load_moments(statistics.file(MOMENTS))
            problem = Problem(context, self.model.checkpoint, linears, absorb=self.absorb)
            save_moments(storage.join(folder, MOMENTS), problem.moments)
            if self.sensitive:
                save_sensitivity(storage.join(folder, SENSITIVITY), problem.sensitivity)

        return context.run.stage(
            "statistics",
            work,
            config={"sensitive": self.sensitive, **absorbing(self.absorb)},
            inputs=[context.data, self.model.step.result.stage, statistics],
        )


@dataclass(kw_only=True)
class RewriteAtOnce(Step[Models]):
    """Rewrites linear layers and tables together, into one model a plan.

    Attributes:
        model: The uncompressed model.
        found: The plans.
        known: Gives the stage with the moments, and the sensitivity where it is needed, that they go by.
        count: How many there are, at most.
        stage: Name of the stage.
        variants: Whose plans they are, for the rows ``afm-emb`` and so on; None: the plans have the names of
            the models that come of them, and all that is done to these.
        behind: Moments of the layers behind compressed ones, where a variant needs them.
        rows: What else becomes of the table's rows.

    Raises:
        StageError: a checkpoint has more bytes than the budget.
    """

    model: Model
    found: Step[SearchResult]
    known: Step[Stage]
    count: int
    stage: str = "rewrite"
    variants: Sequence[Variant] | None = None
    behind: Step[Stage] | None = None
    rows: RowOptions = PUBLISHED

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give the rewriting of all models."""
        return [costs.rewriting(self.stage, self.count)]

    def plans(self) -> dict[str, tuple[Variant | None, Plan]]:
        """Give what becomes of the model, by row."""
        found = self.found.result.plans
        if self.variants is None:
            return {name: (None, plan) for name, plan in found.items()}
        rounded = self.rows.rounded(on_meta(load_config(self.model.checkpoint)))
        return {variant.tables: (variant, _own(found, variant) + rounded) for variant in self.variants}

    def known_of(self, variant: Variant | None, manifest: Manifest) -> Statistics:
        """Read what a variant goes by."""
        stage = self.known.result
        if variant is None or not variant.behind_compressed:
            return read_known(manifest, stage)
        assert self.behind is not None
        return read_known(manifest, stage, also=self.behind.result.file(MOMENTS))

    def work(self, context: Context) -> Models:
        """Rewrite and write them."""
        plans, source, budget = self.plans(), self.model.checkpoint, self.found.result.budget

        def work(folder: str) -> None:
            for name, (variant, plan) in plans.items():
                written = storage.join(folder, name)
                write_compressed(source, written, plan, self.known_of(variant, context.manifest))
                _check_budget(written, variant, budget)

        steps: list[Left] = [self.model.step, self.known, self.behind]
        return _rewritten(context, self.stage, work, plans, steps, {"budget": budget})


def _check_budget(written: str, variant: Variant | None, budget: int | None) -> None:
    """Refuse a checkpoint that became larger than it may be.

    Raises:
        StageError: it has more bytes than the budget.
    """
    if variant is not None and not variant.budgeted:
        return
    if budget is not None and size_on_disk(written) > budget:
        raise StageError(
            f"{written}: {size_on_disk(written):,} bytes, more than the budget of {budget:,}; give less to "
            "--target-bytes and report this, please"
        )


def _own(plans: Mapping[str, Plan], variant: Variant) -> Plan:
    """Give a variant's plan, with the sizes of its leader."""
    return variant.like(plans[leader_of(variant)])


def _rewritten(
    context: Context,
    name: str,
    work: Callable[[str], None],
    plans: Mapping[str, tuple[Variant | None, Plan]],
    steps: Sequence[Left],
    config: Mapping[str, object],
) -> Models:
    """Run a stage that writes a checkpoint a row; it depends on the plans and on what steps left."""
    results = [step.result for step in steps if step is not None]
    stage = context.run.stage(
        name,
        work,
        config={"plans": {row: plan.to_json() for row, (_, plan) in plans.items()}, **config},
        inputs=[result.stage if isinstance(result, Models) else result for result in results],
    )
    return Models(stage=stage, checkpoints={row: stage.file(row) for row in plans}, histories={})


def write_compressed(
    source: str,
    target: str,
    plan: Plan,
    moments: Mapping[str, Moments],
    sensitivity: Mapping[str, Tensor] | None = None,
) -> None:
    """Compress a checkpoint into another one, its plan beside it for review."""
    config = load_config(source)
    model = compress_(from_pretrained(source), plan, moments, sensitivity)
    save_pretrained(model, target, replace(config, plan=config.plan + plan))
    save_plan(plan, target)
