"""Training recipes: what one round of training or fine-tuning does, and the published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from afm_dist.errors import OptionError
from afm_dist.runtime.seeds import check_seed

TableOptimizer = Literal["adam", "adagrad"]
Precision = Literal["float32", "bfloat16"]
Trained = Literal["all", "dense", "factors"]

CHECKPOINT_MINUTES = 10.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One round of training.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Rows of a global batch, over all workers.
        learning_rate: Of Adam (dense weights), and of the tables unless they have their own.
        l2: r of the paper's eq. 13, mean loss + r·Σ‖W‖² over weights (not biases). Of a table
            only the rows that occur in a batch are decayed, once per step.
        table_optimizer: ``adam`` (lazy Adam) or ``adagrad`` (row-wise Adagrad).
        table_learning_rate: Of the tables; None: ``learning_rate``.
        table_l2: r of the tables; None: ``l2``.
        plateau_factor: By which the learning rates are multiplied after each evaluation that is not the
            best so far.
        reset_tables: Begin each epoch but the first with tables drawn anew (MEDA: Liu et al., 2023),
            so that an epoch more does not overfit the ids that are rare; evaluate at the ends of epochs.
        clip_norm: Largest Euclidean norm of the gradient of the loss (L2 apart, as PyTorch clips before
            weight decay), over all weights together; a longer one is scaled down. None: no limit.
        dropout: Probability in the MLP; None leaves the model's own.
        evaluations_per_epoch: How often the validation split is scored.
        patience: Stop after this many evaluations without a better validation AUC.
        seed: Of the row order, of dropout and of tables drawn anew.
        precision: Of the dense part's products; weights, tables and optimizer are float32 either way.
        compile: Whether the model is compiled (``torch.compile``): about 20 s, then faster steps.
            The last digits are others than without.
        trained: Which weights are: ``all``; ``dense``: the tables are frozen; ``factors``: only what
            compression made, and all dense weights of a model that was not compressed.
        average: What is scored and kept at each evaluation is the average of the weights at all
            evaluations so far (SWA: Izmailov et al., 2018), the state before the first step not
            included; training itself goes on from the weights, not from their average.
        distill_weight: w of (1 − w)·BCE(labels) + w·T²·BCE(soft labels of a teacher), in [0, 1); 0: no
            distillation (Hinton et al., 2015).
        distill_temperature: T, by which the logits of both are divided; more than 1 softens them.
    """

    epochs: int = 1
    batch_size: int = 1000
    learning_rate: float = 1e-3
    l2: float = 1e-5
    table_optimizer: TableOptimizer = "adam"
    table_learning_rate: float | None = None
    table_l2: float | None = None
    plateau_factor: float = 1.0
    reset_tables: bool = False
    clip_norm: float | None = None
    dropout: float | None = None
    evaluations_per_epoch: int = 4
    patience: int = 4
    seed: int = 0
    precision: Precision = "float32"
    compile: bool = False
    trained: Trained = "all"
    average: bool = False
    distill_weight: float = 0.0
    distill_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluations_per_epoch", "patience"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} {getattr(self, name)}: must be at least 1")
        for name in ("learning_rate", "table_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise OptionError(f"{name} {rate}: must be positive and finite")
        for name in ("l2", "table_l2"):
            weight = getattr(self, name)
            if weight is not None and not 0 <= weight < math.inf:
                raise OptionError(f"{name} {weight}: must be 0 or more, and finite")
        if not 0 < self.plateau_factor <= 1:
            raise OptionError(f"plateau_factor {self.plateau_factor}: must lie in (0, 1]; try 0.1")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise OptionError(f"clip_norm {self.clip_norm}: must be positive and finite")
        check_seed("seed", self.seed)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise OptionError(f"dropout {self.dropout}: a probability lies in [0, 1)")
        if self.trained not in get_args(Trained):
            raise OptionError(f"trained {self.trained}: unknown; choose from {', '.join(get_args(Trained))}")
        if not 0 <= self.distill_weight < 1:
            raise OptionError(f"distill_weight {self.distill_weight}: must lie in [0, 1); try 0.5")
        if not 0 < self.distill_temperature < math.inf:
            raise OptionError(
                f"distill_temperature {self.distill_temperature}: must be positive and finite; try 2"
            )
        if self.reset_tables and self.trained != "all":
            raise OptionError(f"reset_tables with trained {self.trained}: tables drawn anew must be trained")
        if self.reset_tables and self.average:
            raise OptionError(
                "reset_tables with average: tables drawn anew cannot be averaged with those before"
            )

    def using(self, **changes: Any) -> Recipe:
        """Copy the recipe with what is not None replaced."""
        return replace(self, **{key: value for key, value in changes.items() if value is not None})

    def using_options(self, options: Mapping[str, str], **changes: Any) -> Recipe:
        """Do as ``using``, where the changes are a job's options.

        Args:
            options: What the option is called that gives an attribute.
            changes: Attributes; None where the option is not given.

        Raises:
            OptionError: a value that cannot be, by the name of its option.
        """
        try:
            return self.using(**changes)
        except OptionError as error:
            # Each message begins with the attribute.
            name, _, problem = str(error).partition(" ")
            raise OptionError(f"{options.get(name, name)} {problem}") from error

    @property
    def most_evaluations(self) -> int:
        """How often the validation split is scored, if nothing ends the round before."""
        return self.epochs * (1 if self.reset_tables else self.evaluations_per_epoch)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model's shape and the three rounds of training of the paper's protocol.

    Attributes:
        source: Where the numbers come from.
        hyper_parameters: Of the architecture.
        train: The baseline.
        finetune_mlp: After compressing the MLP.
        finetune_embedding: After compressing the tables.
        mlp_rank: Rank of the second and third linear layers.
        code_dim: Embedding dimension after compression.
    """

    source: str
    hyper_parameters: Mapping[str, Any]
    train: Recipe
    finetune_mlp: Recipe
    finetune_embedding: Recipe
    mlp_rank: int
    code_dim: int

    def shape(self, **changes: Any) -> dict[str, Any]:
        """Return the architecture's hyper-parameters with what is not None replaced."""
        given = {key: value for key, value in changes.items() if value is not None}
        return {**self.hyper_parameters, **given}


_PUBLISHED = Recipe(learning_rate=1e-4, evaluations_per_epoch=1)

# BARS, https://github.com/openbenchmark/BARS, DeepFM_criteo_x4_001 and DeepFM_avazu_x4_001. FuxiCTR adds
# λ/2·‖E‖² of the tables alone, and of all their rows; here it is r = λ/2 of the rows of the batch. It keeps
# the weights with the best AUC − log loss, here it is the best AUC; its learning rate ends at 1e-6.
_LEADERBOARD = Recipe(
    epochs=100,
    batch_size=10_000,
    learning_rate=1e-3,
    l2=0.0,
    evaluations_per_epoch=1,
    patience=2,
    plateau_factor=0.1,
    clip_norm=10.0,
)

_OURS = Preset(
    source="ours: the paper's shape for Criteo, rates and batches for logs of 10^4 to 10^7 rows",
    hyper_parameters={"embedding_dim": 16, "hidden": (400, 400, 400), "dropout": 0.2},
    train=Recipe(batch_size=1000, learning_rate=2e-3),
    finetune_mlp=Recipe(batch_size=2000, learning_rate=3e-4),
    finetune_embedding=Recipe(batch_size=2000, learning_rate=1e-3),
    mlp_rank=64,
    code_dim=2,
)

PRESETS: Mapping[str, Preset] = {
    "default": _OURS,
    "demo": _OURS,
    "afm-criteo": Preset(
        source="Yu et al., KDD 2024, section 4.2 and appendix A.2",
        hyper_parameters={"embedding_dim": 16, "hidden": (400, 400, 400), "dropout": 0.5},
        train=_PUBLISHED.using(batch_size=1000),
        finetune_mlp=_PUBLISHED.using(batch_size=20_000, learning_rate=1e-3),
        finetune_embedding=_PUBLISHED.using(batch_size=10_000, learning_rate=1e-3, dropout=0.0),
        mlp_rank=64,
        code_dim=2,
    ),
    "afm-avazu": Preset(
        source="Yu et al., KDD 2024, section 4.2 and appendix A.2",
        hyper_parameters={"embedding_dim": 50, "hidden": (2000, 2000, 2000), "dropout": 0.5},
        train=_PUBLISHED.using(batch_size=500),
        finetune_mlp=_PUBLISHED.using(batch_size=10_000, learning_rate=1e-3),
        finetune_embedding=_PUBLISHED.using(batch_size=5_000, learning_rate=1e-3, dropout=0.0),
        mlp_rank=320,
        code_dim=8,
    ),
    "criteo-x4": Preset(
        source="BARS, DeepFM_criteo_x4_001; fine-tuning and the shares of the ranks as in afm-criteo",
        hyper_parameters={"embedding_dim": 16, "hidden": (1000,) * 5, "dropout": 0.2},
        train=_LEADERBOARD.using(table_l2=5e-6),
        finetune_mlp=_PUBLISHED.using(batch_size=20_000, learning_rate=1e-3),
        finetune_embedding=_PUBLISHED.using(batch_size=10_000, learning_rate=1e-3, dropout=0.0),
        mlp_rank=160,
        code_dim=2,
    ),
    "avazu-x4": Preset(
        source="BARS, DeepFM_avazu_x4_001; fine-tuning and the shares of the ranks as in afm-avazu",
        hyper_parameters={"embedding_dim": 16, "hidden": (2000,) * 4, "dropout": 0.0},
        train=_LEADERBOARD,
        finetune_mlp=_PUBLISHED.using(batch_size=10_000, learning_rate=1e-3),
        finetune_embedding=_PUBLISHED.using(batch_size=5_000, learning_rate=1e-3, dropout=0.0),
        mlp_rank=320,
        code_dim=3,
    ),
}


# Presets of data_prep, which say how a log is prepared, that have no recipe.
_OF_DATA_ONLY = ("criteo-1tb", "criteo-x1")


def preset(name: str) -> Preset:
    """Look a preset up by name.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in PRESETS:
        known = "a preset of jobs/prepare.py only" if name in _OF_DATA_ONLY else "unknown"
        raise OptionError(f"--preset {name}: {known}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def check_checkpoint_minutes(minutes: float) -> None:
    """Refuse a time that is none.

    Raises:
        OptionError: it is negative or not finite.
    """
    if not 0 <= minutes < math.inf:
        raise OptionError(f"--checkpoint-minutes {minutes}: must be 0 or more, and finite")
