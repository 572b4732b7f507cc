"""Stages that compress: statistics and rewriting, of the MLP and of the tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from afm_dist.compression.budget import allocate, check_budget, structure_bytes
from afm_dist.compression.plan import ACTIVATIONS, Activation, Method, Plan, PlanEntry
from afm_dist.compression.ranks import FixedRank, GivenRanks, Policy, plan_ranks
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.compression.sensitivity import SAMPLE_BATCH, SAMPLE_ROWS, output_sensitivity
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError, OptionError, StageError
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
# From so many shards, to see what the logit depends on.
SAMPLE_SHARDS = 16
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


@dataclass(frozen=True, kw_only=True)
class Target:
    """How large a compressed checkpoint may be, and how its layers are compressed.

    Attributes:
        bytes: Of its files.
        ratio: Or how many times smaller than the uncompressed one's they shall be.
        activation: Between the factors of linear layers.
        kappa: Of the shifted ReLU.
    """

    bytes: int | None = None
    ratio: float | None = None
    activation: Activation
    kappa: float

    def budget(self, before: int) -> int:
        """Bytes, for a checkpoint that had so many."""
        if self.bytes is not None:
            return self.bytes
        assert self.ratio is not None
        return int(before / self.ratio)

    def entries(self, model: nn.Module) -> list[PlanEntry]:
        """What the budget is spent on, of rank 1."""
        return [
            *(
                PlanEntry(name=name, method="afm", rank=1, activation=self.activation, kappa=self.kappa)
                for name in target_linears(model)
            ),
            PlanEntry(name=TABLE, method="afm", rank=1, folded_into=_folded_into(model)),
        ]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Ranks for a budget.

    Attributes:
        stage: That chose them.
        linears: Of the linear layers.
        tables: Of the tables.
        budget: Bytes that the compressed checkpoint may have.
    """

    stage: Stage
    linears: GivenRanks
    tables: GivenRanks
    budget: int


def choose_ranks(
    run: Run,
    data: Stage,
    manifest: Manifest,
    baseline: Models,
    statistics: Stage,
    target: Target,
) -> Ranks:
    """The ranks with the least predicted error within a budget, of the layers and the tables together.

    Args:
        run: The run directory.
        data: The dataset's stage.
        manifest: The dataset.
        baseline: The uncompressed model.
        statistics: Moments of its linear layers.
        target: The budget.

    Raises:
        OptionError: no ranks fit, or nothing needs to be compressed.
    """
    source = baseline.checkpoints["baseline"]
    before = size_on_disk(source)
    budget = target.budget(before)

    def work(folder: str) -> None:
        model, config = from_pretrained(source), load_config(source)
        entries = target.entries(model)
        rest = _besides(before, config, entries)
        check_budget(config, entries, budget, besides=rest)
        moments = load_moments(statistics.file(MOMENTS)) | moments_from_counts(model, manifest, TABLE)
        names = [entry.name for entry in entries]
        sensitivity = output_sensitivity(model, _sample(manifest), names, forward=forward_batch)
        found = allocate(config, entries, moments, sensitivity, budget - rest)
        ranks = ", ".join(f"{n} {'as it is' if k is None else f'to {k}'}" for n, k in found.ranks.items())
        console.say(
            f"  for {budget:,} bytes: {ranks}; predicted root mean square change of the logit "
            f"{math.sqrt(found.error):.3g}, without what a ReLU between factors cuts"
        )
        storage.write_json(storage.join(folder, RANKS), {"budget": budget, **asdict(found)})

    stage = run.stage(
        "ranks",
        work,
        config={"budget": budget, "activation": target.activation, "kappa": target.kappa},
        inputs=[data, baseline.stage, statistics],
    )
    ranks = dict(storage.read_json(stage.file(RANKS))["ranks"])
    tables = {TABLE: ranks.pop(TABLE)}
    return Ranks(stage=stage, linears=GivenRanks(ranks=ranks), tables=GivenRanks(ranks=tables), budget=budget)


def check_target(config: ModelConfig, checkpoint: str | None, target: Target) -> None:
    """Refuse a budget that cannot be met, before anything is started.

    Args:
        config: The uncompressed model.
        checkpoint: Where it is; None: it will be trained.
        target: The budget.

    Raises:
        OptionError: says what is possible.
    """
    with torch.device("meta"):
        entries = target.entries(config.build())
    before = size_on_disk(checkpoint) if checkpoint else structure_bytes(config, Plan())
    check_budget(config, entries, target.budget(before), besides=_besides(before, config, entries))


def _besides(before: int, config: ModelConfig, entries: Sequence[PlanEntry]) -> int:
    """What a compressed checkpoint holds besides tensors: names, the plan, the layout of the file."""
    return before - structure_bytes(config, Plan()) + ENTRY_BYTES * len(entries)


def _sample(manifest: Manifest) -> Iterator[Batch]:
    """Some training rows from all over the split."""
    shards = manifest.shards("train")
    shards = shards[:: -(-len(shards) // SAMPLE_SHARDS)]
    batches = -(-SAMPLE_ROWS // (len(shards) * SAMPLE_BATCH))
    for shard in shards:
        yield from islice(read_batches(manifest, [shard], SAMPLE_BATCH), batches)


def _folded_into(model: nn.Module) -> str | None:
    """The linear layer that reads the tables' embeddings, as the model declares."""
    folds: Mapping[str, str] = getattr(type(model), "folds", {})
    return folds.get(TABLE)


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
                console.say(f"  {ranks or 'no layer is compressed'}")

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


def rewrite_tables(
    run: Run, tuned: Models, statistics: Stage, *, policy: Policy, budget: int | None = None
) -> Models:
    """Project the tables (paper eq. 10) and fold the projections into the first linear layer (eq. 12).

    ``afm-emb`` comes from ``afm-mlp``, ``svd-emb`` from ``svd-mlp``.

    Raises:
        StageError: a checkpoint has more bytes than the budget.
    """

    def work(folder: str) -> None:
        moments = load_moments(statistics.file(MOMENTS))
        for method, source in (("afm", "afm-mlp"), ("svd", "svd-mlp")):
            target = _folded_into(from_pretrained(tuned.checkpoints[source]))
            plan = plan_ranks(moments, policy, folded_into=target)
            written = storage.join(folder, f"{method}-emb")
            _rewrite(tuned.checkpoints[source], written, plan.using(method=method), moments)
            if budget is not None and size_on_disk(written) > budget:
                raise StageError(
                    f"{written}: {size_on_disk(written):,} bytes, more than the budget of {budget:,}; give "
                    "less to --target-bytes and report this, please"
                )

    stage = run.stage(
        "rewrite-embedding",
        work,
        config={"policy": asdict(policy), "budget": budget},
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
