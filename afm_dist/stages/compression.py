"""Stages that compress: statistics and rewriting, of the MLP and of the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import check_files, size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_plan, save_pretrained
from afm_dist.compression.plan import TABLE, Plan, PlanEntry
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError, StageError
from afm_dist.large_tables.stored import stored_tensors
from afm_dist.methods.low_rank.config import ACTIVATIONS, DEFAULT_KAPPA, Activation, LowRank
from afm_dist.methods.low_rank.ranks import FixedRank, Policy, low_rank, plan_ranks
from afm_dist.modules.tensors import named_tensors
from afm_dist.runs.run import Run, Stage
from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.stages.methods import AFM, Compared, Methods
from afm_dist.stages.rows import PUBLISHED, Rows, absorbing, first_order
from afm_dist.stages.training import Models
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.from_counts import moments_from_counts
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import load_moments, save_moments
from afm_dist.statistics.partials import remove_partials
from afm_dist.statistics.sensitivity_file import load_sensitivity

MOMENTS = "moments.safetensors"
SENSITIVITY = "sensitivity.safetensors"
STREAM_TOLERANCE = 1e-9
COMPARED = Methods()
NO_STAGES: Mapping[str, Stage] = {}


def check_ranks(
    config: ModelConfig,
    mlp: Policy,
    embedding: Policy,
    rows: Rows = PUBLISHED,
    *,
    checkpoint: str | None = None,
) -> None:
    """Refuse ranks larger than their layers, and models that cannot be compressed, before anything starts.

    Args:
        config: The uncompressed model.
        mlp: How the ranks of its linear layers are chosen.
        embedding: How that of its table is.
        rows: What else becomes of the table's rows.
        checkpoint: Where the model is; None: it will be trained.

    Raises:
        OptionError: names the option, the layer and its width; or the model has no first-order weights
            that could be absorbed or rounded, is compressed already, or holds other numbers than float32.
        DataError: a file of the checkpoint is missing or damaged.
    """
    if config.plan.modules:
        done = ", ".join(config.plan.modules)
        raise OptionError(
            f"--checkpoint: the model is compressed already ({done}); give the uncompressed one"
        )
    with torch.device("meta"):
        model = config.build()
    if checkpoint is not None:
        _check_types(model, checkpoint)
    *linears, table = plan_for(model, activation="none", kappa=DEFAULT_KAPPA, rows=rows).entries
    for option, entries, policy in (("--mlp-rank", linears, mlp), ("--embedding-dim", [table], embedding)):
        if not isinstance(policy, FixedRank):
            continue
        try:
            ranked = tuple(
                PlanEntry(entry.name, replace(low_rank(entry), rank=policy.rank, folded_into=None))
                for entry in entries
            )
            with torch.device("meta"):
                restructure_(model, Plan(entries=ranked))
        except OptionError as error:
            raise OptionError(f"{option} {policy.rank}: {error}") from error


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


def target_linears(model: nn.Module) -> list[str]:
    """The linear layers to compress, as the model declares them.

    Raises:
        OptionError: the model declares none (an MLP with a single hidden layer).
    """
    names: Sequence[str] = getattr(model, "compressible_linears", ())
    if not names:
        raise OptionError(
            f"{type(model).__name__} has no linear layers to compress: give it two or more hidden layers"
        )
    return list(names)


def linear_statistics(
    run: Run, data: Stage, manifest: Manifest, baseline: Models, *, options: ResourceOptions = AUTOMATIC
) -> Stage:
    """E[y] and Cov(y) of the MLP's linear layers over the whole training split, on Ray."""

    def work(folder: str) -> None:
        model = from_pretrained(baseline.checkpoints["baseline"])
        moments = collect_moments(
            model,
            manifest,
            target_linears(model),
            folder=folder,
            keep=True,
            options=options,
            emit=run.event,
        )
        digest = save_moments(storage.join(folder, MOMENTS), moments)
        remove_partials(folder)
        console.say(f"  {manifest.rows('train'):,} rows, digest of the moments {digest[:16]}")

    return run.stage("statistics-mlp", work, inputs=[data, baseline.stage])


def folded_into(model: nn.Module) -> str | None:
    """The linear layer that reads the tables' embeddings, as the model declares."""
    folds: Mapping[str, str] = getattr(type(model), "folds", {})
    return folds.get(TABLE)


def plan_for(model: nn.Module, *, activation: Activation, kappa: float, rows: Rows = PUBLISHED) -> Plan:
    """Plan all that can be compressed of a model here: its linear layers and its table, of rank 1."""
    linear = LowRank(rank=1, activation=activation, kappa=kappa)
    linears = (PlanEntry(name, linear) for name in target_linears(model))
    table = LowRank(rank=1, folded_into=folded_into(model), absorbs=rows.absorbs(model))
    return Plan(entries=(*linears, PlanEntry(TABLE, table)))


def rewrite_linears(
    run: Run,
    baseline: Models,
    statistics: Stage,
    *,
    methods: Methods = COMPARED,
    sensitivity: Stage | None = None,
    in_turn: Stage | None = None,
    policy: Policy,
    activation: Activation,
    kappa: float,
    ablation: bool,
) -> Models:
    """Eigendecompose, choose ranks, and write ``afm-mlp`` and its twins by the other methods (paper eq. 5).

    With ``ablation`` also ``afm-mlp-<mode>`` for the other ReLU modes. The ranks are those of AFM.

    Args:
        run: The run directory.
        baseline: The uncompressed model.
        statistics: Moments of its linear layers.
        methods: What the run compares.
        sensitivity: Of the logit to their outputs, where a method needs it.
        in_turn: Moments of the layers behind compressed ones, where a method needs them.
        policy: How the ranks are chosen.
        activation: Between the factors.
        kappa: Of the shifted ReLU.
        ablation: Whether the other ReLU modes are written, too.
    """
    variants: dict[str, tuple[Compared, Activation]] = {
        method.linears: (method, activation) for method in methods.factored
    }
    if ablation:
        variants |= {f"{AFM.linears}-{mode}": (AFM, mode) for mode in ACTIVATIONS if mode != activation}
    source = baseline.checkpoints["baseline"]

    def work(folder: str) -> None:
        moments = load_moments(statistics.file(MOMENTS))
        behind = moments if in_turn is None else load_moments(in_turn.file(MOMENTS))
        felt = None if sensitivity is None else load_sensitivity(sensitivity.file(SENSITIVITY))
        for name, (method, mode) in variants.items():
            plan = plan_ranks(moments, policy, method=method.factors, activation=mode, kappa=kappa)
            own = behind if method.in_turn else moments
            write_compressed(source, storage.join(folder, name), plan, own, felt)
            if name == AFM.linears:
                ranks = ", ".join(f"{entry.name} to rank {low_rank(entry).rank}" for entry in plan.entries)
                console.say(f"  {ranks or 'no layer is compressed'}")

    stage = run.stage(
        "rewrite-mlp",
        work,
        config={
            "methods": [method.name for method in methods.factored],
            "policy": asdict(policy),
            "activation": activation,
            "kappa": kappa,
            "ablation": ablation,
        },
        inputs=[stage for stage in (baseline.stage, statistics, sensitivity, in_turn) if stage is not None],
    )
    return Models(stage=stage, checkpoints={name: stage.file(name) for name in variants}, histories={})


def table_statistics(
    run: Run,
    data: Stage,
    manifest: Manifest,
    tuned: Models,
    *,
    methods: Methods = COMPARED,
    stream_check: bool,
    absorb: bool = False,
    options: ResourceOptions = AUTOMATIC,
) -> Stage:
    """E[e] and Cov(e) of every field, from the vocabulary's counts (paper eq. 7), for each method's tables.

    With ``stream_check`` also by a pass over the shards, of AFM's; both must agree to 1e-9. With ``absorb``
    the first-order weights are one more coordinate, of which there is no such pass.
    """
    assert not (stream_check and absorb)

    def work(folder: str) -> None:
        for method in _by_data(methods):
            own = from_pretrained(tuned.checkpoints[method.linears])
            save_moments(storage.join(folder, _table_moments(method)), counted_moments(own, manifest, absorb))
        model = from_pretrained(tuned.checkpoints[AFM.linears])
        moments = counted_moments(model, manifest, absorb)
        if stream_check:
            streamed = collect_moments(
                model, manifest, [TABLE], folder=folder, keep=True, options=options, emit=run.event
            )
            _check_agreement(moments, streamed)
        save_moments(storage.join(folder, MOMENTS), moments)
        remove_partials(folder)

    return run.stage(
        "statistics-embedding",
        work,
        config={
            "stream_check": stream_check,
            "methods": [method.name for method in _by_data(methods)],
            **absorbing(absorb),
        },
        inputs=[data, tuned.stage],
    )


def counted_moments(model: nn.Module, manifest: Manifest, absorb: bool) -> dict[str, Moments]:
    """Moments of the table's fields from the counts; ``absorb``: with the first-order weights."""
    return moments_from_counts(
        model, manifest, TABLE, absorbs=first_order(model, "absorb") if absorb else None
    )


def _by_data(methods: Methods) -> list[Compared]:
    """Methods besides AFM that need moments of their own tables."""
    return [method for method in methods.factored if method.by_data and method is not AFM]


def _table_moments(method: Compared) -> str:
    return MOMENTS if method is AFM else f"moments-{method.name}.safetensors"


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
    console.say(f"  streaming agrees with the counts: largest relative difference {worst:.1e}")


def rewrite_tables(
    run: Run,
    tuned: Models,
    statistics: Stage,
    *,
    methods: Methods = COMPARED,
    sensitivity: Mapping[str, Stage] = NO_STAGES,
    policy: Policy,
    rows: Rows = PUBLISHED,
    budget: int | None = None,
) -> Models:
    """Project the tables (paper eq. 10) and fold the projections into the first linear layer (eq. 12).

    ``afm-emb`` comes from ``afm-mlp``, and so on. The ranks are those of AFM.

    Args:
        run: The run directory.
        tuned: Models with compressed linear layers.
        statistics: Moments of their tables.
        methods: What the run compares.
        sensitivity: Of the logit to the embeddings, of the methods that need it; all, to absorb.
        policy: How the ranks are chosen.
        rows: What else becomes of the tables' rows.
        budget: Bytes that a checkpoint may have.

    Raises:
        StageError: a checkpoint has more bytes than the budget.
    """

    def work(folder: str) -> None:
        moments = load_moments(statistics.file(MOMENTS))
        for method in methods.factored:
            source = tuned.checkpoints[method.linears]
            model = from_pretrained(source)
            ranked = plan_ranks(
                moments,
                policy,
                method=method.factors,
                folded_into=folded_into(model),
                absorbs=rows.absorbs(model),
            )
            plan = ranked + rows.rounded(model)
            own = load_moments(statistics.file(_table_moments(method))) if method.by_data else moments
            written = storage.join(folder, method.tables)
            felt = sensitivity.get(method.name)
            write_compressed(
                source, written, plan, own, None if felt is None else load_sensitivity(felt.file(SENSITIVITY))
            )
            if budget is not None and size_on_disk(written) > budget:
                raise StageError(
                    f"{written}: {size_on_disk(written):,} bytes, more than the budget of {budget:,}; give "
                    "less to --target-bytes and report this, please"
                )

    stage = run.stage(
        "rewrite-embedding",
        work,
        config={
            "methods": [method.name for method in methods.factored],
            "policy": asdict(policy),
            "budget": budget,
            **rows.changes(),
        },
        inputs=[tuned.stage, statistics, *sensitivity.values()],
    )
    names = [method.tables for method in methods.factored]
    return Models(stage=stage, checkpoints={name: stage.file(name) for name in names}, histories={})


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
