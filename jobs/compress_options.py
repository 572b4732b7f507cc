"""What a compression is asked for: the options of jobs/compress.py, and the recipes and ranks they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tyro.conf import OmitArgPrefixes

from afm_dist.compression.variant import FieldRanks
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import DEFAULT_KAPPA, Activation
from afm_dist.runs.run import Resume
from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.runtime.seeds import check_seed
from afm_dist.search.rows import Codes, LinearTerms
from afm_dist.training.recipe import CHECKPOINT_MINUTES, Precision, Trained

DEMO_OUTPUT = "runs/demo"
DEFAULT_METHODS = "afm,svd"
DEMO_ROWS = 300_000
MIN_DEMO_ROWS = 10_000


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
    linear_terms: LinearTerms = "keep"
    """What becomes of the first-order weights, a number for each id: keep, as published; absorb them into
    the tables as one more coordinate before the decomposition, so that the codes give them, too; or round
    them to bfloat16, two bytes each in the checkpoint, whatever becomes of the tables."""
    codes: Codes = "float32"
    """What checkpoints hold the codes of compressed tables in, and the rows of tables for which a budget or a
    sweep chooses no rank: float32, or bfloat16 for half the bytes."""
    target_bytes: str | None = None
    """Instead of ranks: how large the compressed checkpoint may be, e.g. 100MB. The ranks of the layers and
    the embedding dimensions are those with the least predicted change of the logit."""
    target_ratio: float | None = None
    """Instead of ranks: how many times smaller than the uncompressed checkpoint it shall be, e.g. 5."""
    field_ranks: FieldRanks = "each"
    """Where a budget or a sweep chooses ranks: each field of the tables has an embedding dimension of its
    own, 0 included (only the field's mean, without rows), or all have a uniform one."""
    refine_ranks: Literal["on", "off"] = "on"
    """With a budget: score a few allocations near the predicted best on the validation split, before
    fine-tuning, and take that of the least log loss."""
    schedule: Literal["paper", "after-control", "at-once"] = "paper"
    """Order of the steps. paper: the MLP is compressed, a round of fine-tuning, the tables, another round.
    after-control: a round for the uncompressed model, all is compressed at once, another round; the control
    has the same two. at-once: all is compressed at once, and there is one round (that of a sweep)."""
    sweep: bool = False
    """Score many ranks before fine-tuning, from the same statistics, fine-tune the best of a few sizes, and
    draw AUC against bytes in the report."""
    sweep_ranks: str | None = None
    """Ranks of the MLP's layers that a sweep tries, e.g. 16,32,64; without it powers of two."""
    sweep_dims: str | None = None
    """Embedding dimensions that a sweep tries, e.g. 1,2,4; without it powers of two."""
    sweep_ratios: str | None = None
    """How many times smaller the models are that a sweep fine-tunes; without it 3,5,10. Of each size it is
    the one with the best validation AUC."""
    activation: Activation = "shifted"
    """Between the two factors of a layer: no ReLU, a plain one (as published), or a shifted one."""
    kappa: float = DEFAULT_KAPPA
    """Where the shifted ReLU starts to cut, in standard deviations below a score's mean."""
    methods: str = DEFAULT_METHODS
    """What is compared, with commas between: afm (the paper's), svd, weighted (afm, errors counted by what
    they change of the logit), sequential (afm, statistics behind compressed layers), quantized (tables of
    a few bits a row), int8 and int4 (whole numbers in place of rows, to compare with), and scratch (a small
    model that was never large)."""
    ship: str | None = None
    """Which of the fine-tuned models becomes OUTPUT/checkpoint: best, that with the best validation AUC, of
    equal ones the smallest (the default; with --seeds it is the first of --methods); smallest, the smallest
    that is as good as the control on the validation split, where none is, the best (the default of a
    sweep); or one by name, e.g. afm-emb."""
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
    finetune_weights: Trained | None = None
    """Which weights both rounds train: all, dense (the tables are frozen), or factors (only what
    compression made; of the uncompressed control all dense weights)."""
    finetune_average: bool = False
    """Score and keep the average of the weights at the evaluations so far, instead of the last ones."""
    finetune_patience: int | None = None
    """End a round after so many evaluations (four an epoch, in the default preset) without a better
    validation AUC."""
    distill: float | None = None
    """Weight, below 1, of the uncompressed model's predictions in the loss of both rounds, beside the
    labels; e.g. 0.5."""
    distill_temperature: float | None = None
    """By which the logits are divided where they are compared with the uncompressed model's; 1 by default,
    more softens them."""
    seed: int = 0
    """Of initialisation, row order, dropout and the synthetic log."""
    seeds: str | None = None
    """Instead of --seed: several, e.g. 0,1,2. Each is a run of its own in OUTPUT/seed-N; OUTPUT/report has
    mean ± deviation, and says which differences are within noise."""
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
    def run_directory(self) -> str:
        """Where the run goes."""
        return DEMO_OUTPUT if self.output is None else self.output

    @property
    def papers(self) -> bool:
        """Whether the order of the steps is the paper's."""
        return self.schedule == "paper" and not self.sweep

    @property
    def compares_modes(self) -> bool:
        """Whether all ReLU modes are compared; where all is compressed at once, there is one."""
        return self.papers and (self.ablation == "on" or (self.ablation == "auto" and self.demo))

    @property
    def budgeted(self) -> bool:
        """Whether ranks follow from a budget."""
        return self.target_bytes is not None or self.target_ratio is not None


def check(config: Compress) -> None:
    """Refuse options that cannot work together, and warn of those without effect.

    Raises:
        OptionError: names the options and the fix.
    """
    if config.demo and config.checkpoint is not None:
        raise OptionError("--checkpoint needs --data: the dataset the model was trained on")
    if not config.demo and config.output is None:
        raise OptionError("--data needs --output: the run directory to write to, e.g. --output runs/mine")
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("target_bytes", "target_ratio", "mlp_rank", "mlp_energy", "embedding_dim")
        if getattr(config, name) is not None
    ]
    if config.budgeted and len(given) > 1:
        raise OptionError(f"{' and '.join(given)} exclude each other: a budget chooses all ranks itself")
    if config.sweep and given:
        raise OptionError(f"--sweep and {given[0]} exclude each other: a sweep tries many ranks")
    if config.seeds is not None:
        parse_seeds(config.seeds)
        if config.sweep:
            raise OptionError("--seeds and --sweep exclude each other: a seed each may choose other ranks")
        if config.ship in ("best", "smallest"):
            raise OptionError(
                f"--seeds and --ship {config.ship} exclude each other: each seed may ship another model, "
                "of which there is no mean; name one, e.g. --ship afm-emb"
            )
        if config.seed != Compress.seed:
            raise OptionError("--seeds and --seed exclude each other: give one")
    if config.sweep and config.methods != DEFAULT_METHODS:
        raise OptionError(
            "--sweep and --methods exclude each other: a sweep has its own: afm, weighted and svd"
        )
    if config.sweep and config.ablation == "on":
        raise OptionError("--sweep and --ablation on exclude each other: a sweep has one ReLU mode")
    if config.linear_terms == "absorb" and config.stream_check and config.papers:
        raise OptionError(
            "--stream-check and --linear-terms absorb exclude each other: the pass over the shards sees the "
            "embeddings without the first-order weights; leave --stream-check out, the counts are exact"
        )
    if config.target_bytes is not None:
        check_target_bytes(config.target_bytes)
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
    if config.distill is not None and not 0 <= config.distill < 1:
        raise OptionError(f"--distill {config.distill}: a share of the loss lies in [0, 1); try 0.5")
    if config.distill_temperature is not None and not 0 < config.distill_temperature < math.inf:
        raise OptionError(
            f"--distill-temperature {config.distill_temperature}: must be positive and finite; try 2"
        )
    if config.finetune_patience is not None and config.finetune_patience < 1:
        raise OptionError(f"--finetune-patience {config.finetune_patience}: at least 1 evaluation; try 2")
    if config.demo_rows < MIN_DEMO_ROWS:
        raise OptionError(f"--demo-rows {config.demo_rows}: at least {MIN_DEMO_ROWS} rows are needed")
    for option, ignored, because in (
        ("--demo-rows", config.demo_rows != DEMO_ROWS and not config.demo, "--data is given"),
        ("--model", config.model != Compress.model and config.checkpoint, "--checkpoint is given"),
        (
            "--kappa",
            config.kappa != DEFAULT_KAPPA and config.activation != "shifted" and not config.compares_modes,
            f"--activation is {config.activation}",
        ),
        *(
            (f"--sweep-{name}", getattr(config, f"sweep_{name}") and not config.sweep, "--sweep is not given")
            for name in ("ranks", "dims", "ratios")
        ),
        (
            "--field-ranks",
            config.field_ranks != Compress.field_ranks and not (config.budgeted or config.sweep),
            "the ranks are given",
        ),
        (
            "--refine-ranks",
            config.refine_ranks != Compress.refine_ranks and not config.budgeted,
            "neither --target-bytes nor --target-ratio is given",
        ),
        ("--stream-check", not config.papers and config.stream_check, "the schedule is not the paper's"),
        ("--ablation on", not config.papers and config.ablation == "on", "the schedule is not the paper's"),
        (
            "--distill-temperature",
            config.distill_temperature is not None and not config.distill,
            "nothing is distilled without --distill",
        ),
    ):
        if ignored:
            console.warn(f"{option} is ignored: {because}")


def check_target_bytes(value: str) -> None:
    """Refuse a budget that is no number of bytes.

    Raises:
        OptionError: names the option.
    """
    # It takes seconds to import: only where a budget is given.
    from afm_dist.compression.budget import parse_bytes

    try:
        parse_bytes(value)
    except OptionError as error:
        raise OptionError(
            f"--target-bytes {value!r}: no positive number of bytes; write 100MB, 1.5GiB or 2000000"
        ) from error


def parse_seeds(value: str) -> list[int]:
    """Different seeds between commas, two or more.

    Raises:
        OptionError: they are not, or one is no seed.
    """
    parts = [part.strip() for part in value.split(",")]
    seeds = [int(part) for part in parts if part.isdecimal()]
    if len(seeds) < len(parts) or len(set(seeds)) < max(2, len(seeds)):
        raise OptionError(f"--seeds {value!r}: two or more different seeds between commas, e.g. 0,1,2")
    for seed in seeds:
        check_seed("--seeds", seed)
    return seeds
