"""Stages that train: the baseline, rounds of fine-tuning, and a small model from scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, check_schema, load_config
from afm_dist.checkpoint.files import content_fingerprint
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.compression.rewrite import restructure_
from afm_dist.dataset.manifest import Manifest
from afm_dist.models import build_model
from afm_dist.pipelines.context import Context, Dataset
from afm_dist.pipelines.step import Step
from afm_dist.planning.capacity import Estimate
from afm_dist.planning.estimate import Costs
from afm_dist.runs.run import Stage
from afm_dist.runtime import console
from afm_dist.tables.fused import FusedEmbedding
from afm_dist.training.fit import fit
from afm_dist.training.history import History, summary
from afm_dist.training.recipe import Recipe
from afm_dist.training.worker import HISTORY, Candidate

BASELINE, SCRATCH = "baseline", "scratch"
SCRATCH_WORDS = (
    "scratch: the structure of {of} with weights drawn anew, trained once, with the training recipe of "
    "the preset; {of} had the baseline's training and was fine-tuned."
)


@dataclass(frozen=True, kw_only=True)
class Models:
    """Checkpoints that one stage left, by row name of the report.

    Attributes:
        stage: The stage.
        checkpoints: Checkpoint directory by name.
        histories: For trained models: what training saw.
    """

    stage: Stage
    checkpoints: dict[str, str]
    histories: dict[str, History]


@dataclass(frozen=True)
class Model:
    """One of the models of a step.

    Attributes:
        step: That makes it.
        name: Its row name.
    """

    step: Step[Models]
    name: str

    @property
    def checkpoint(self) -> str:
        """Give its checkpoint directory, once the step has run."""
        return self.step.result.checkpoints[self.name]


def external_dataset(location: str) -> Dataset:
    """Read a dataset directory made before this run.

    Raises:
        DataError: it is not one.
    """
    manifest = Manifest.load(storage.absolute(location))
    return Dataset(Stage.external("data", manifest.location, manifest.fingerprint()), manifest)


def training_dataset(location: str) -> Dataset:
    """Read a dataset directory to train on, with a warning where training would hardly shuffle it.

    Raises:
        DataError: it is not one.
    """
    found = external_dataset(location)
    if found.manifest.row_order == "log":
        console.warn(
            f"{found.manifest.location}: the training rows lie in the order of the log, of which training "
            "permutes but stretches: an earlier release prepared them; prepare the data again for rows in "
            "random order"
        )
    return found


@dataclass(kw_only=True)
class ExternalBaseline(Step[Models]):
    """Takes a checkpoint trained before this run.

    Attributes:
        location: Its directory.

    Raises:
        DataError: it is not one, or was trained on another schema.
    """

    location: str

    def work(self, context: Context) -> Models:
        """Check that it fits the data."""
        location = storage.absolute(self.location)
        check_schema(load_config(location), context.manifest, checkpoint=location)
        stage = Stage.external("baseline", location, content_fingerprint(location))
        return Models(stage=stage, checkpoints={BASELINE: location}, histories={})


@dataclass(kw_only=True)
class TrainBaseline(Step[Models]):
    """Trains the uncompressed model on the training split, watched on the validation split.

    Attributes:
        architecture: Its registered name.
        hyper_parameters: Keyword arguments of the architecture.
        recipe: How it is trained.
    """

    architecture: str
    hyper_parameters: Mapping[str, Any]
    recipe: Recipe

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a round of training."""
        return [costs.training_round("train", self.recipe)]

    def work(self, context: Context) -> Models:
        """Train it."""
        fields = context.manifest.fields
        config = ModelConfig(
            architecture=self.architecture, hyper_parameters=self.hyper_parameters, fields=fields
        )

        def draw() -> tuple[nn.Module, ModelConfig]:
            return build_model(self.architecture, fields, self.hyper_parameters), config

        stage = context.run.stage(
            "train",
            lambda folder: _train(context, BASELINE, draw, self.recipe, folder),
            config={
                "model": self.architecture,
                **storage.plain(self.hyper_parameters),
                **asdict(self.recipe),
                "workers": context.group.workers,
            },
            inputs=[context.data],
        )
        return _trained(stage, BASELINE)


@dataclass(kw_only=True)
class TrainScratch(Step[Models]):
    """Trains a compressed structure as the baseline is trained, from weights drawn anew.

    Attributes:
        like: The model whose structure it is.
        recipe: The baseline's.
    """

    like: Model
    recipe: Recipe

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a round of training."""
        return [costs.training_round("train-scratch", self.recipe)]

    def work(self, context: Context) -> Models:
        """Train it."""
        config = load_config(self.like.checkpoint)

        def draw() -> tuple[nn.Module, ModelConfig]:
            model = restructure_(config.build(), config.plan)
            _spread_projections(model)
            return model, config

        stage = context.run.stage(
            "train-scratch",
            lambda folder: _train(context, SCRATCH, draw, self.recipe, folder),
            # The structure, not the values of what was compressed.
            config={"model": config.to_json(), **asdict(self.recipe), "workers": context.group.workers},
            inputs=[context.data],
        )
        return _trained(stage, SCRATCH)


@dataclass(kw_only=True)
class FineTune(Step[Models]):
    """Fine-tunes several models with the same recipe and the same order of rows.

    What is kept of each is the state with the best validation AUC, the one before fine-tuning
    included, so fine-tuning never ships a worse model.

    Attributes:
        stage: Name of the stage.
        control: Row name of the uncompressed model with the same rounds.
        uncompressed: What it begins from. As it enters the round it is also what all of them, the control
            included, learn from where the recipe distils.
        recipe: The same for all.
        compressed: Makes the other models; None: there are none.
        count: How many these are, as far as that is known before.
    """

    stage: str
    control: str
    uncompressed: Model
    recipe: Recipe
    compressed: Step[Models] | None = None
    count: int = 0

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give a round of training of all models, the control among them."""
        return [costs.training_round(self.stage, self.recipe, self.count + 1)]

    def work(self, context: Context) -> Models:
        """Fine-tune them."""
        teacher = self.uncompressed.checkpoint
        compressed = [] if self.compressed is None else [self.compressed.result]
        sources = {self.control: teacher}
        for models in compressed:
            sources |= models.checkpoints

        def candidates(folder: str) -> list[Candidate]:
            return [
                Candidate(name=name, source=source, output=storage.join(folder, name), teacher=teacher)
                for name, source in sources.items()
            ]

        def work(folder: str) -> None:
            _fit(context, candidates(folder), self.recipe, folder, fine_tuning=True)

        stage = context.run.stage(
            self.stage,
            work,
            config={"candidates": list(sources), **asdict(self.recipe), "workers": context.group.workers},
            inputs=[
                context.data,
                self.uncompressed.step.result.stage,
                *(models.stage for models in compressed),
            ],
        )
        done = candidates(stage.path)
        return Models(
            stage=stage,
            checkpoints={candidate.name: candidate.checkpoint for candidate in done},
            histories={candidate.name: History.read(candidate.history) for candidate in done},
        )


def _train(
    context: Context,
    name: str,
    draw: Callable[[], tuple[nn.Module, ModelConfig]],
    recipe: Recipe,
    folder: str,
) -> None:
    """Train one model from the weights that are drawn for the recipe's seed."""
    initial = storage.join(folder, "initial")
    torch.manual_seed(recipe.seed)
    model, config = draw()
    save_pretrained(model, initial, config)
    _fit(context, [Candidate(name=name, source=initial, output=folder)], recipe, folder)
    storage.remove(initial)


def _fit(
    context: Context, candidates: Sequence[Candidate], recipe: Recipe, folder: str, **ways: bool
) -> None:
    histories = fit(
        candidates,
        context.manifest,
        recipe,
        folder=folder,
        group=context.group,
        emit=context.run.event,
        **ways,
    )
    print_histories(histories)


def _trained(stage: Stage, name: str) -> Models:
    return Models(
        stage=stage,
        checkpoints={name: stage.file("checkpoint")},
        histories={name: History.read(stage.file(HISTORY))},
    )


def _spread_projections(model: nn.Module) -> None:
    """Draw the projections such that embeddings begin as widely spread as codes, as in a plain table."""
    for module in model.modules():
        if isinstance(module, FusedEmbedding) and module.projection is not None:
            nn.init.normal_(module.projection, std=module.code_dim**-0.5)


def print_histories(histories: Mapping[str, History]) -> None:
    """Print what each training saw and what is kept of it, a line an evaluation."""
    for name, history in histories.items():
        for point in history.curve:
            loss = "" if point.train_loss is None else f", training loss {point.train_loss:.4f}"
            console.info(
                f"  {name} step {point.step}: validation AUC {point.validation_auc:.4f}, "
                f"log loss {point.validation_log_loss:.4f}{loss}"
            )
        words = summary(history)
        console.info(f"  {name}: kept {words['kept']}: {words['reason']}")
