"""Stages that compress: statistics and rewriting, of the MLP and of the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice

import torch
from torch import nn

from afm_dist import console, storage
from afm_dist.checkpoint import (
    ModelConfig,
    from_pretrained,
    load_config,
    save_pretrained,
    size_on_disk,
)
from afm_dist.compression.budget import allocate, structure_bytes
from afm_dist.compression.plan import ACTIVATIONS, Activation, Method, Plan, PlanEntry
from afm_dist.compression.ranks import FixedRank, GivenRanks, Policy, plan_ranks
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.compression.sensitivity import output_sensitivity
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError, OptionError
from afm_dist.resources import AUTOMATIC, ResourceOptions
from afm_dist.runs import Run, Stage
from afm_dist.stages.training import Models
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.from_counts import moments_from_counts
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import load_moments, save_moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.partials import remove_partials

MOMENTS = "moments.safetensors"
STREAM_TOLERANCE = 1e-9
TABLE = "embedding"
RANKS = "ranks.json"
# Of the training split, to see what the logit depends on.
SENSITIVITY_ROWS = 1 << 16
SENSITIVITY_BATCH = 1 << 12
# What a compressed module adds to a checkpoint besides numbers, at most.
ENTRY_BYTES = 1024


def check_ranks(config: ModelConfig, mlp: Policy, embedding: Policy) -> None:
    """Refuse ranks larger than their layers, and a compressed model, before anything is started.

    Raises:
        OptionError: names the option, the layer and its width.
    """
    if config.plan.entries:
        done = ", ".join(entry.name for entry in config.plan.entries)
        raise OptionError(
            f"--checkpoint: the model is compressed already ({done}); give the uncompressed one"
        )
    with torch.device("meta"):
        model = config.build()
    for option, names, policy in (
        ("--mlp-rank", target_linears(model), mlp),
        ("--embedding-dim", [TABLE], embedding),
    ):
        if not isinstance(policy, FixedRank):
            continue
        try:
            entries = tuple(PlanEntry(name=name, method="afm", rank=policy.rank) for name in names)
            with torch.device("meta"):
                restructure_(model, Plan(entries=entries))
        except OptionError as error:
            raise OptionError(f"{option} {policy.rank}: {error}") from error


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


def choose_ranks(
    run: Run,
    data: Stage,
    manifest: Manifest,
    baseline: Models,
    statistics: Stage,
    *,
    bytes: int | None,
    ratio: float | None,
    activation: Activation,
    kappa: float,
) -> GivenRanks:
    """The ranks with the least predicted error within a budget, of the layers and the tables together.

    Args:
        run: The run directory.
        data: The dataset's stage.
        manifest: The dataset.
        baseline: The uncompressed model.
        statistics: Moments of its linear layers.
        bytes: The budget: of the compressed checkpoint's files.
        ratio: Or how many times smaller than the baseline's they shall be.
        activation: Between the factors of linear layers.
        kappa: Of the shifted ReLU.

    Raises:
        OptionError: no ranks fit, or nothing needs to be compressed.
    """
    source = baseline.checkpoints["baseline"]
    before = size_on_disk(source)
    budget = int(before / ratio) if bytes is None and ratio is not None else bytes
    assert budget is not None
    if budget >= before:
        raise OptionError(f"the model has {before:,} bytes already, which a budget of {budget:,} holds")

    def work(folder: str) -> None:
        model, config = from_pretrained(source), load_config(source)
        names = target_linears(model)
        moments = load_moments(statistics.file(MOMENTS)) | moments_from_counts(model, manifest, TABLE)
        rows = islice(
            read_batches(manifest, manifest.shards("train"), SENSITIVITY_BATCH),
            -(-SENSITIVITY_ROWS // SENSITIVITY_BATCH),
        )
        sensitivity = output_sensitivity(model, rows, [*names, TABLE], forward=forward_batch)
        target = getattr(type(model), "folds", {}).get(TABLE)
        entries = [
            *(PlanEntry(name=n, method="afm", rank=1, activation=activation, kappa=kappa) for n in names),
            PlanEntry(name=TABLE, method="afm", rank=1, folded_into=target),
        ]
        # Names, the plan and the layout of a file are no tensors.
        rest = before - structure_bytes(config, Plan()) + ENTRY_BYTES * len(entries)
        found = allocate(config, entries, moments, sensitivity, budget - rest)
        ranks = ", ".join(f"{n} {'as it is' if k is None else f'to {k}'}" for n, k in found.ranks.items())
        console.say(
            f"  budget {budget:,} bytes: {ranks}; {found.bytes + rest:,} bytes at most, predicted root mean "
            f"square change of the logit {math.sqrt(found.error):.3g}"
        )
        storage.write_json(storage.join(folder, RANKS), {"budget": budget, **asdict(found)})

    stage = run.stage(
        "ranks",
        work,
        config={"budget": budget, "activation": activation, "kappa": kappa},
        inputs=[data, baseline.stage, statistics],
    )
    return GivenRanks(ranks=storage.read_json(stage.file(RANKS))["ranks"])


def rewrite_linears(
    run: Run,
    baseline: Models,
    statistics: Stage,
    *,
    policy: Policy,
    activation: Activation,
    kappa: float,
    ablation: bool,
) -> Models:
    """Eigendecompose, choose ranks, and write ``afm-mlp`` and its SVD twin (paper eq. 5).

    With ``ablation`` also ``afm-mlp-<mode>`` for the other ReLU modes.
    """
    variants: dict[str, tuple[Method, Activation]] = {
        "afm-mlp": ("afm", activation),
        "svd-mlp": ("svd", activation),
    }
    if ablation:
        variants |= {f"afm-mlp-{mode}": ("afm", mode) for mode in ACTIVATIONS if mode != activation}
    source = baseline.checkpoints["baseline"]

    def work(folder: str) -> None:
        moments = load_moments(statistics.file(MOMENTS))
        for name, (method, mode) in variants.items():
            plan = plan_ranks(moments, policy, method=method, activation=mode, kappa=kappa)
            _rewrite(source, storage.join(folder, name), plan, moments)
            if name == "afm-mlp":
                ranks = ", ".join(f"{entry.name} to rank {entry.rank}" for entry in plan.entries)
                console.say(f"  {ranks}")

    stage = run.stage(
        "rewrite-mlp",
        work,
        config={"policy": asdict(policy), "activation": activation, "kappa": kappa, "ablation": ablation},
        inputs=[baseline.stage, statistics],
    )
    return Models(stage=stage, checkpoints={name: stage.file(name) for name in variants}, histories={})


def table_statistics(
    run: Run,
    data: Stage,
    manifest: Manifest,
    tuned: Models,
    *,
    stream_check: bool,
    options: ResourceOptions = AUTOMATIC,
) -> Stage:
    """E[e] and Cov(e) of every field, from the vocabulary's counts (paper eq. 7).

    With ``stream_check`` also by a pass over the shards; both must agree to 1e-9.
    """

    def work(folder: str) -> None:
        model = from_pretrained(tuned.checkpoints["afm-mlp"])
        moments = moments_from_counts(model, manifest, TABLE)
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
        config={"stream_check": stream_check},
        inputs=[data, tuned.stage],
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
    console.say(f"  streaming agrees with the counts: largest relative difference {worst:.1e}")


def rewrite_tables(run: Run, tuned: Models, statistics: Stage, *, policy: Policy) -> Models:
    """Project the tables (paper eq. 10) and fold the projections into the first linear layer (eq. 12).

    ``afm-emb`` comes from ``afm-mlp``, ``svd-emb`` from ``svd-mlp``.
    """

    def work(folder: str) -> None:
        moments = load_moments(statistics.file(MOMENTS))
        for method, source in (("afm", "afm-mlp"), ("svd", "svd-mlp")):
            target = getattr(type(from_pretrained(tuned.checkpoints[source])), "folds", {}).get(TABLE)
            plan = plan_ranks(moments, policy, folded_into=target)
            _rewrite(
                tuned.checkpoints[source],
                storage.join(folder, f"{method}-emb"),
                plan.using(method=method),
                moments,
            )

    stage = run.stage(
        "rewrite-embedding",
        work,
        config={"policy": asdict(policy)},
        inputs=[tuned.stage, statistics],
    )
    names = ("afm-emb", "svd-emb")
    return Models(stage=stage, checkpoints={name: stage.file(name) for name in names}, histories={})


def _rewrite(source: str, target: str, plan: Plan, moments: Mapping[str, Moments]) -> None:
    """Compress a checkpoint into another one, its plan beside it for review."""
    config = load_config(source)
    model = compress_(from_pretrained(source), plan, moments)
    save_pretrained(model, target, replace(config, plan=config.plan + plan))
    plan.save(storage.join(target, "plan.json"))
