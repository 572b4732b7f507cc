"""The shape of ``report.json``, format version 1.

Optional keys may be absent; the section that would show them is then left out. So a new optional key
keeps the version: an older report is shown without it. Whatever changes the meaning of a key, or makes
one required, is a new version, and ``validated`` refuses the others.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

FORMAT_VERSION = 1

Stage = Literal["trained", "before-finetune", "after-finetune"]
Round = Literal["before", "mlp", "embedding", "both"]
STAGES: tuple[Stage, ...] = ("trained", "before-finetune", "after-finetune")


class ReliabilityBin(TypedDict):
    """Rows with neighbouring predictions."""

    weight: float
    """How many rows."""
    predicted: float
    """Clicks the model expects."""
    observed: float
    """Clicks there were."""


class Row(TypedDict):
    """One measured model. Names: baseline, control-mlp, control, <method>-mlp, <method>-emb, scratch."""

    name: str
    stage: Stage
    auc: float | None
    """null where the test split has rows of one label only, or none."""
    log_loss: float | None
    """null where it has no rows."""
    parameters: int
    bytes: int
    rows_per_second: float
    throughput_ratio: float
    """Throughput over the baseline's."""
    throughput_ratio_min: NotRequired[float]
    throughput_ratio_max: NotRequired[float]
    validation_auc: NotRequired[float]
    calibration: NotRequired[float | None]
    """Predicted over observed clicks of all rows; null where there was no click."""
    calibration_error: NotRequired[float | None]
    """Mean over the rows of |predicted - observed rate| of their bin; null where there are no rows."""
    reliability: NotRequired[list[ReliabilityBin]]
    """By ascending prediction."""
    note: NotRequired[str]


class ShippedRecord(TypedDict):
    """Which row became the result, and why."""

    name: str
    stage: Stage
    checkpoint: NotRequired[str]
    reason: NotRequired[str]


class Layer(TypedDict):
    """One compressed layer or table; where it has a rank, the spectrum that was chosen from."""

    name: str
    kind: Literal["linear", "embedding"]
    method: str
    width: int
    """Outputs of the layer (M), or the embedding dimension (T)."""
    details: NotRequired[dict[str, str]]
    """How a method without ranks was applied: what each column of a table says, by its title."""
    rank: NotRequired[int]
    kept_energy: NotRequired[float]
    """Share of variance kept: the first ``rank`` eigenvalues over the sum of all."""
    components: NotRequired[dict[str, int]]
    """Components needed for "0.9", "0.95", "0.99" of the variance (sum of eigenvalues)."""
    components_singular: NotRequired[dict[str, int]]
    """The same for the sum of singular values (square roots of the eigenvalues)."""
    rank_deficiency: NotRequired[int]
    rank_needed: NotRequired[int]
    """Smallest rank that loses nothing but round-off; 0 where the outputs never change."""
    count: NotRequired[int]
    """Rows in the statistics."""
    activation: NotRequired[str | None]
    eigenvalues: NotRequired[list[float]]
    """Descending."""


class CurvePoint(TypedDict):
    """One validation during fine-tuning; step 0 is the model before it."""

    step: int
    rows: NotRequired[int]
    train_loss: NotRequired[float | None]
    validation_auc: float
    validation_log_loss: NotRequired[float]


class FineTuningRecord(TypedDict):
    """One candidate's fine-tuning, and the step that was kept (0: before fine-tuning)."""

    name: str
    round: Round
    kept_step: int
    kept: NotRequired[str]
    reason: NotRequired[str]
    recipe: NotRequired[dict[str, Any]]
    curve: list[CurvePoint]


class TrainingPoint(TypedDict):
    """One validation during the training of the baseline."""

    epoch: int
    step: NotRequired[int]
    train_loss: NotRequired[float | None]
    validation_auc: NotRequired[float]
    validation_log_loss: NotRequired[float]


class ReluMode(TypedDict):
    """One variant of what stands between the two factors of a linear layer."""

    activation: str
    stage: Stage
    auc: float | None
    log_loss: float | None
    validation_auc: NotRequired[float]
    chosen: NotRequired[bool]


class SweepPoint(TypedDict):
    """One model of a sweep, before fine-tuning; the uncompressed one has method ``baseline``."""

    name: str
    method: str
    """``baseline``, or what its look is found by (``afm_dist.compression.facts.Facts.looks``)."""
    ranks: NotRequired[dict[str, int | dict[str, int] | str]]
    """By module: a rank, one of each field, or words of a method without; what is left out is as it was."""
    bytes: int
    parameters: int
    validation_auc: float
    auc: float | None
    """On the test split; null as in its rows."""
    log_loss: float | None
    front: bool
    """Whether no other one has as few bytes with as high a validation AUC (SVD apart)."""


class TableRecord(TypedDict):
    """One field's embedding table."""

    field: str
    rows: int
    bytes_before: int
    bytes_after: int
    kept_energy: NotRequired[float]


class SplitRecord(TypedDict):
    """One split of the data."""

    rows: int
    positive_share: NotRequired[float]


class Data(TypedDict):
    """What the models were trained and measured on."""

    name: str
    preset: NotRequired[str]
    fields: NotRequired[dict[str, int]]
    ids: NotRequired[int]
    splits: NotRequired[dict[str, SplitRecord]]
    bayes_auc: NotRequired[float]
    """AUC of the true probabilities; known for synthetic data only."""
    bayes_log_loss: NotRequired[float]
    bayes_split: NotRequired[str]
    fingerprint: NotRequired[str]
    description: NotRequired[dict[str, Any]]
    """``afm_dist.dataset.description_json``: every field in figures, without tokens."""


class Command(TypedDict):
    """A command that goes with a run."""

    what: str
    command: str


class Timing(TypedDict):
    """How long one stage took."""

    stage: str
    seconds: float
    reused: NotRequired[bool]


class Report(TypedDict):
    """All of ``report.json``."""

    format_version: int
    title: str
    rows: list[Row]
    shipped: ShippedRecord
    command: NotRequired[str]
    commands: NotRequired[list[Command]]
    """Further ones, such as the one that measures the shipped checkpoint again."""
    created: NotRequired[str]
    layers: NotRequired[list[Layer]]
    finetuning: NotRequired[list[FineTuningRecord]]
    training: NotRequired[list[TrainingPoint]]
    relu_modes: NotRequired[list[ReluMode]]
    sweep: NotRequired[list[SweepPoint]]
    tables: NotRequired[list[TableRecord]]
    data: NotRequired[Data]
    environment: NotRequired[dict[str, Any]]
    config: NotRequired[dict[str, Any]]
    timings: NotRequired[list[Timing]]
    notes: NotRequired[list[str]]
