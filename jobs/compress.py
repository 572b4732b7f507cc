"""Compress a trained CTR model: the framework of Yu et al., KDD 2024, as a Ray job.

python jobs/compress.py                                                   # the demo
python jobs/compress.py --data DATA --checkpoint RUN/checkpoint --output RUN2
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import OmitArgPrefixes

from afm_dist import console
from afm_dist.compression.plan import DEFAULT_KAPPA, Activation
from afm_dist.errors import OptionError
from afm_dist.resources import AUTOMATIC, ResourceOptions
from afm_dist.runs import Resume, Run
from afm_dist.training.recipe import (
    CHECKPOINT_MINUTES,
    Precision,
    Preset,
    Recipe,
    check_checkpoint_minutes,
    preset,
)

if TYPE_CHECKING:
    from afm_dist.checkpoint import ModelConfig
    from afm_dist.compression.ranks import Policy
    from afm_dist.dataset.manifest import Manifest
    from afm_dist.planning.capacity import Plan
    from afm_dist.runs import Stage
    from data_prep.protocol import Protocol

DEMO_OUTPUT = "runs/demo"
DEMO_ROWS = 300_000
MIN_DEMO_ROWS = 10_000
DEMO_SHARD_ROWS = 20_000


@dataclass(kw_only=True)
class Compress:
    """Compress a CTR model; without --data, a demonstration on a synthetic click log.

    The result is in OUTPUT/checkpoint, the evidence in OUTPUT/report/report.html.
    """

    data: str | None = None
    """Dataset directory, made by jobs/prepare.py. Without it: a synthetic log is made."""
    checkpoint: str | None = None
    """Checkpoint of the model to compress. Without it: a baseline is trained first."""
    output: str | None = None
    """Run directory; created if it is not there. The demo's is runs/demo."""
    preset: str = "default"
    """Recipes and ranks the options below start from: default, afm-criteo, afm-avazu, criteo-x4,
    avazu-x4 or demo (the same as default)."""
    model: str = "deepfm"
    """Architecture of the baseline, when it is trained here: autoint, dcn, dcnv2, deepfm, dlrm, fibinet,
    gdcn or nfm."""
    mlp_rank: int | None = None
    """Rank of the MLP's second and third linear layers."""
    mlp_energy: float | None = None
    """Instead of a rank: the share of the variance of the outputs to keep, e.g. 0.99."""
    embedding_dim: int | None = None
    """Embedding dimension after compression."""
    target_bytes: str | None = None
    """Instead of ranks: how large the compressed checkpoint may be, e.g. 100MB. The ranks of the layers and
    the embedding dimension are those with the least predicted change of the logit."""
    target_ratio: float | None = None
    """Instead of ranks: how many times smaller than the uncompressed checkpoint it shall be, e.g. 5."""
    activation: Activation = "shifted"
    """Between the two factors of a layer: no ReLU, a plain one (as published), or a shifted one."""
    kappa: float = DEFAULT_KAPPA
    """Where the shifted ReLU starts to cut, in standard deviations below a score's mean."""
    ablation: Literal["auto", "on", "off"] = "auto"
    """Fine-tune all three ReLU modes and compare them in the report; auto: in the demo only."""
    stream_check: bool = False
    """Also compute the embedding statistics by a pass over the shards, and compare to 1e-9."""
    finetune_epochs: int | None = None
    """Passes over the training split in each of the two fine-tuning rounds."""
    finetune_learning_rate: float | None = None
    """Adam's learning rate in both rounds."""
    finetune_batch_size: int | None = None
    """Rows of a batch in both rounds, over all workers."""
    seed: int = 0
    """Of initialisation, row order, dropout and the synthetic log."""
    precision: Precision | None = None
    """Of the products in the dense part in training; bfloat16 where the processor or GPU has it."""
    compile: bool = False
    """Compile each model that is trained with torch.compile: about 20 s, then faster steps. Needs a
    C++ compiler."""
    workers: int = 1
    """Data-parallel Ray Train workers; the CPUs are shared out among them."""
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    """In training a checkpoint to go on from is taken after each evaluation, and when the last one is
    so old; when they are taken does not change the result."""
    demo_rows: int = DEMO_ROWS
    """Rows of the demo's synthetic log."""
    resources: OmitArgPrefixes[ResourceOptions] = AUTOMATIC
    resume: Resume = "auto"
    """auto: skip what is up to date; never: do everything again."""
    dry_run: bool = False
    """Print what would be done, with what each node must have, and start nothing."""

    @property
    def demo(self) -> bool:
        """Whether this is the demonstration."""
        return self.data is None

    @property
    def budgeted(self) -> bool:
        """Whether ranks follow from a budget."""
        return self.target_bytes is not None or self.target_ratio is not None


def main(config: Compress) -> None:
    """The paper's algorithm, stage by stage."""
    check(config)
    console.say(f"afm-dist compress: {config.data or f'a synthetic log of {config.demo_rows:,} rows'}")
    # torch and Ray take seconds to import: after the first line.
    from afm_dist.cluster import check_paths, check_workers
    from afm_dist.compression.budget import parse_bytes
    from afm_dist.machine import use_all_cores
    from afm_dist.planning.capacity import admit
    from afm_dist.planning.show import show
    from afm_dist.stages import budget, compression, evaluation, reporting, training

    check_paths(data=config.data, checkpoint=config.checkpoint, output=config.output or DEMO_OUTPUT)
    check_workers(config.workers)
    check_checkpoint_minutes(config.checkpoint_minutes)
    chosen = preset(config.preset)
    mlp, embedding = policies(config, chosen)
    first, second = recipes(config, chosen)
    ablation = config.ablation == "on" or (config.ablation == "auto" and config.demo)
    output = config.output or DEMO_OUTPUT
    described = model_config(config, chosen)
    compression.check_ranks(described, mlp, embedding)
    described, rows = planned_model(config, chosen, described)
    target = budget.Target(
        bytes=None if config.target_bytes is None else parse_bytes(config.target_bytes),
        ratio=config.target_ratio,
        activation=config.activation,
        kappa=config.kappa,
    )
    if config.budgeted:
        budget.check_target(described, config.checkpoint, target)
    planned = plan(config, chosen, described, rows, ablation)
    if config.dry_run:
        show(planned, check=config.resources.capacity_check)
        return
    admit(planned.left(), check=config.resources.capacity_check)
    use_all_cores()

    run = Run(output, job="compress", config=asdict(config), resume=config.resume)
    data, manifest = demo_dataset(run, config) if config.demo else training.external_dataset(str(config.data))

    # The uncompressed model.
    baseline = (
        training.external_baseline(config.checkpoint, manifest)
        if config.checkpoint
        else training.train_baseline(
            run,
            data,
            manifest,
            architecture=config.model,
            hyper_parameters=chosen.hyper_parameters,
            recipe=baseline_recipe(config, chosen),
            workers=config.workers,
            checkpoint_minutes=config.checkpoint_minutes,
            options=config.resources,
        )
    )

    # The MLP (paper, section 3.2): moments of the outputs, two thin layers for a wide one, one round
    # of fine-tuning. The control is the uncompressed model with the same round.
    linear_moments = compression.linear_statistics(run, data, manifest, baseline, options=config.resources)
    ranks = None
    if config.budgeted:
        ranks = budget.choose_ranks(run, data, manifest, baseline, linear_moments, target)
        mlp, embedding = ranks.linears, ranks.tables
    low_rank = compression.rewrite_linears(
        run,
        baseline,
        linear_moments,
        policy=mlp,
        activation=config.activation,
        kappa=config.kappa,
        ablation=ablation,
    )
    tuned = training.finetune(
        run,
        "finetune-mlp",
        data,
        manifest,
        {"control-mlp": baseline.checkpoints["baseline"], **low_rank.checkpoints},
        inputs=[baseline.stage, low_rank.stage],
        recipe=first,
        workers=config.workers,
        checkpoint_minutes=config.checkpoint_minutes,
        options=config.resources,
    )

    # The tables (section 3.3): moments of each field, narrow tables with projections, folded into the
    # first linear layer; another round of fine-tuning.
    table_moments = compression.table_statistics(
        run, data, manifest, tuned, stream_check=config.stream_check, options=config.resources
    )
    narrow = compression.rewrite_tables(
        run, tuned, table_moments, policy=embedding, budget=None if ranks is None else ranks.budget
    )
    final = training.finetune(
        run,
        "finetune-embedding",
        data,
        manifest,
        {"control": tuned.checkpoints["control-mlp"], **narrow.checkpoints},
        inputs=[tuned.stage, narrow.stage],
        recipe=second,
        workers=config.workers,
        checkpoint_minutes=config.checkpoint_minutes,
        options=config.resources,
    )

    # The evidence.
    subjects = reporting.subjects_of(baseline, low_rank, tuned, narrow, final)
    made = [baseline.stage, low_rank.stage, tuned.stage, narrow.stage, final.stage]
    quality = evaluation.evaluate(run, data, manifest, subjects, inputs=made, options=config.resources)
    speed = evaluation.throughput(run, data, manifest, subjects, inputs=made)
    shipped = reporting.ship(run, final, "afm-emb")
    report = reporting.write_report(
        run,
        reporting.Evidence(
            manifest=manifest,
            baseline=baseline,
            linear_statistics=linear_moments,
            linear_rewrite=low_rank,
            linear_finetune=tuned,
            table_statistics=table_moments,
            table_rewrite=narrow,
            table_finetune=final,
            linear_recipe=first,
            table_recipe=second,
            subjects=subjects,
            quality=quality,
            throughput=speed,
            ablation=ablation,
            ranks=ranks,
        ),
        title=f"{described.architecture} on {config.data or 'the synthetic demo'}",
        config=asdict(config),
    )
    reporting.say_result(run, report, shipped)


def check(config: Compress) -> None:
    """Refuse options that cannot work together, and warn of those without effect.

    Raises:
        OptionError: names the options and the fix.
    """
    if config.demo and config.checkpoint:
        raise OptionError("--checkpoint needs --data: the dataset the model was trained on")
    if config.checkpoint == "":
        raise OptionError("--checkpoint: empty; name a checkpoint directory, or leave the option out")
    if not config.demo and config.output is None:
        raise OptionError("--data needs --output: the run directory to write to, e.g. --output runs/mine")
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("target_bytes", "target_ratio", "mlp_rank", "mlp_energy", "embedding_dim")
        if getattr(config, name) is not None
    ]
    if config.budgeted and len(given) > 1:
        raise OptionError(f"{' and '.join(given)} exclude each other: a budget chooses all ranks itself")
    if config.target_ratio is not None and not 1 < config.target_ratio < math.inf:
        raise OptionError(f"--target-ratio {config.target_ratio}: how many times smaller, more than 1; try 5")
    if config.mlp_rank is not None and config.mlp_energy is not None:
        raise OptionError("--mlp-rank and --mlp-energy exclude each other: give one")
    if config.mlp_energy is not None and not 0 < config.mlp_energy <= 1:
        raise OptionError(
            f"--mlp-energy {config.mlp_energy}: a share of the variance lies in (0, 1]; try 0.99"
        )
    if not 0 <= config.kappa < math.inf:
        raise OptionError(f"--kappa {config.kappa}: a number of standard deviations, 0 or more; try 2")
    if config.demo_rows < MIN_DEMO_ROWS:
        raise OptionError(f"--demo-rows {config.demo_rows}: at least {MIN_DEMO_ROWS} rows are needed")
    for option, ignored, because in (
        ("--demo-rows", config.demo_rows != DEMO_ROWS and not config.demo, "--data is given"),
        ("--model", config.model != Compress.model and config.checkpoint, "--checkpoint is given"),
        (
            "--kappa",
            config.kappa != DEFAULT_KAPPA and config.activation != "shifted",
            f"--activation is {config.activation}",
        ),
    ):
        if ignored:
            console.warn(f"{option} is ignored: {because}")


def policies(config: Compress, chosen: Preset) -> tuple[Policy, Policy]:
    """How ranks are chosen, for the MLP and for the tables."""
    from afm_dist.compression.ranks import FixedRank, KeptEnergy

    fixed = FixedRank(rank=chosen.mlp_rank if config.mlp_rank is None else config.mlp_rank)
    if config.budgeted:
        # Until the budget has chosen.
        return FixedRank(rank=1), FixedRank(rank=1)
    mlp = fixed if config.mlp_energy is None else KeptEnergy(share=config.mlp_energy)
    dim = chosen.code_dim if config.embedding_dim is None else config.embedding_dim
    return mlp, FixedRank(rank=dim)


def model_config(config: Compress, chosen: Preset) -> ModelConfig:
    """The model to compress, or the one that will be trained (whose MLP does not depend on the data)."""
    from afm_dist.checkpoint import ModelConfig, load_config
    from afm_dist.dataset.manifest import Field

    if config.checkpoint:
        return load_config(config.checkpoint)
    return ModelConfig(
        architecture=config.model,
        hyper_parameters=chosen.hyper_parameters,
        fields=tuple(Field(name=name, kind="categorical", cardinality=1) for name in ("any", "other")),
    )


def baseline_recipe(config: Compress, chosen: Preset) -> Recipe:
    """The recipe of the baseline, when it is trained here."""
    return chosen.train.using(**_ways(config))


def _ways(config: Compress) -> dict[str, Any]:
    return {"seed": config.seed, "precision": config.precision, "compile": config.compile or None}


def recipes(config: Compress, chosen: Preset) -> tuple[Recipe, Recipe]:
    """The recipes of the two fine-tuning rounds."""
    changes = {
        "epochs": config.finetune_epochs,
        "learning_rate": config.finetune_learning_rate,
        "batch_size": config.finetune_batch_size,
        **_ways(config),
    }
    return chosen.finetune_mlp.using(**changes), chosen.finetune_embedding.using(**changes)


def demo_dataset(run: Run, config: Compress) -> tuple[Stage, Manifest]:
    """A synthetic log in Criteo's raw format, and the dataset made of it."""
    from afm_dist.dataset.manifest import Manifest
    from data_prep.pipeline import prepare
    from data_prep.sources.synthetic import write_synthetic
    from data_prep.sources.synthetic_source import synthetic_source

    def work(folder: str) -> None:
        log = write_synthetic(f"{folder}/raw", config.demo_rows, config.seed, emit=run.event)
        source, output = synthetic_source(log), f"{folder}/data"
        prepare(source, output, demo_protocol(config), options=config.resources, emit=run.event)

    stage = run.stage("prepare", work, config={"rows": config.demo_rows, "seed": config.seed})
    return stage, Manifest.load(stage.file("data"))


def demo_protocol(config: Compress) -> Protocol:
    """How the synthetic log is prepared."""
    from data_prep.protocol import Protocol

    return Protocol(seed=config.seed, rows_per_shard=DEMO_SHARD_ROWS)


def planned_model(config: Compress, chosen: Preset, described: ModelConfig) -> tuple[ModelConfig, Manifest]:
    """The uncompressed model with all its fields, and its data; of the demo, what they will be like.

    Raises:
        DataError: the checkpoint was trained on another schema.
    """
    from afm_dist.checkpoint import check_schema
    from afm_dist.dataset.manifest import Manifest
    from afm_dist.planning.estimate import new_model
    from data_prep.dry_run import synthetic_manifest

    manifest = (
        synthetic_manifest(config.demo_rows, demo_protocol(config))
        if config.demo
        else Manifest.load(str(config.data))
    )
    if config.checkpoint:
        check_schema(described, manifest, checkpoint=config.checkpoint)
        return described, manifest
    return new_model(config.model, chosen.hyper_parameters, manifest), manifest


def plan(
    config: Compress, chosen: Preset, described: ModelConfig, manifest: Manifest, ablation: bool
) -> Plan:
    """What the stages take, and what the cluster has."""
    from afm_dist.planning.estimate import Costs
    from data_prep.dry_run import estimate_synthetic

    costs = Costs.of(described, manifest, options=config.resources, workers=config.workers)
    prepared = [estimate_synthetic(config.demo_rows, demo_protocol(config), costs.cluster, costs.tasks)]
    first, second = recipes(config, chosen)
    variants = 4 if ablation else 2
    stages = [
        *(prepared if config.demo else []),
        *([] if config.checkpoint else [costs.training_round("train", chosen.train)]),
        costs.statistics("statistics-mlp"),
        *([costs.sensitivity("ranks")] if config.budgeted else []),
        costs.rewriting("rewrite-mlp", variants),
        costs.training_round("finetune-mlp", first, variants + 1),
        *([costs.statistics("statistics-embedding")] if config.stream_check else []),
        costs.rewriting("rewrite-embedding", 2),
        costs.training_round("finetune-embedding", second, 3),
        costs.scoring("evaluate", "test", passes=7 + 2 * variants),
        costs.timing("throughput", variants + 2),
    ]
    return costs.plan(stages, output=config.output or DEMO_OUTPUT)


if __name__ == "__main__":
    console.run_job(Compress, main)
