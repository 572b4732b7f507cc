"""What the options of jobs/compress.py mean: the model, its variants, the search, the recipes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.compression.budget import parse_bytes
from afm_dist.compression.registry import variants as registered
from afm_dist.compression.variant import Request, Variant
from afm_dist.dataset.labels import Labels, check_labels, warn_of_undefined
from afm_dist.errors import OptionError
from afm_dist.pipelines.context import Dataset
from afm_dist.pipelines.step import Given, Step
from afm_dist.planning.estimate import Costs
from afm_dist.runs.run import check_output
from afm_dist.runtime import console
from afm_dist.runtime.cluster import check_workers
from afm_dist.search.budget import BudgetSearch
from afm_dist.search.fixed import FixedSearch
from afm_dist.search.grid import GridSearch, swept
from afm_dist.search.rows import RowOptions
from afm_dist.search.search import Search, on_meta
from afm_dist.stages.compression import check_model
from afm_dist.stages.shipping import BEST, SMALLEST
from afm_dist.stages.training import (
    SCRATCH,
    ExternalBaseline,
    Models,
    TrainBaseline,
    external_dataset,
)
from afm_dist.training.recipe import Preset, Recipe, check_checkpoint_minutes, preset
from jobs.compress_demo import PrepareDemo
from jobs.compress_model import model_config, planned_model
from jobs.compress_options import Compress

if TYPE_CHECKING:
    from afm_dist.dataset.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job was asked for, checked before anything is started.

    Attributes:
        config: The options.
        preset: The recipes and sizes that they start from.
        model: The uncompressed model with all its fields; of the demo, what it will be like.
        manifest: Its data; of the demo, what it will be like.
        variants: What is compared.
        scratch: Whether a small model is trained from scratch, too.
        request: What is asked of the variants.
        rounds: Recipes of the two rounds of fine-tuning.
        ship: The rule by which a model ships, or its row name.
    """

    config: Compress
    preset: Preset
    model: ModelConfig
    manifest: Manifest
    variants: Sequence[Variant]
    scratch: bool
    request: Request
    rounds: tuple[Recipe, Recipe]
    ship: str

    @classmethod
    def of(cls, config: Compress) -> Job:
        """Check the options against the model and its data.

        Raises:
            OptionError: names an option, its value and the fix.
            DataError: the data or the checkpoint is not what it should be.
        """
        check_workers(config.workers)
        check_checkpoint_minutes(config.checkpoint_minutes)
        chosen = preset(config.preset)
        variants, scratch = parse_methods(config.methods)
        ship = parse_ship(config, variants)
        request, rounds = request_of(config, chosen), recipes(config, chosen)
        warn_of_rounds(config, rounds)
        check_output(config.run_directory, job="compress")
        model = model_config(config, chosen)
        check_model(model, variants, request, rows_of(config), checkpoint=config.checkpoint)
        if not (config.budgeted or config.sweep):
            for leader in {variant.leader or variant.name: None for variant in variants}:
                registered()[leader].warn(on_meta(model), request)
        model, manifest = planned_model(config, chosen, model)
        if not config.demo:
            check_labels(manifest)
            warn_of_undefined(Labels.of(manifest, "test"))
        return cls(
            config=config,
            preset=chosen,
            model=model,
            manifest=manifest,
            variants=variants,
            scratch=scratch,
            request=request,
            rounds=rounds,
            ship=ship,
        )

    @property
    def schedule(self) -> str:
        """Name the order of the steps."""
        if self.config.sweep and self.config.schedule == "paper":
            return "at-once"
        return self.config.schedule

    def search(self) -> Search:
        """Give who proposes the sizes: the options themselves, a budget, or a sweep.

        Raises:
            OptionError: what cannot be met, or does not fit the model.
        """
        if self.config.sweep:
            return self.grid()
        common: dict[str, Any] = {
            "request": self.request,
            "variants": self.variants,
            "rows": rows_of(self.config),
        }
        if not self.config.budgeted:
            return FixedSearch(**common)
        given = self.config.target_bytes
        search = BudgetSearch(
            bytes=None if given is None else parse_bytes(given),
            ratio=self.config.target_ratio,
            field_ranks=self.config.field_ranks,
            refine=self.config.refine_ranks == "on",
            **common,
        )
        search.check(self.model, self.config.checkpoint)
        return search

    def grid(self) -> GridSearch:
        """Give what a sweep tries.

        Raises:
            OptionError: a size that does not fit the model, or a ratio that none reaches.
        """
        grid = GridSearch(
            request=self.request,
            variants=swept(),
            rows=rows_of(self.config),
            field_ranks=self.config.field_ranks,
            ratios=ratios_of(self.config),
        )
        return grid.of(self.model)

    def costs(self) -> Costs:
        """Give what the estimates of its steps are made of."""
        return Costs.of(self.model, self.manifest, options=self.config.resources, workers=self.config.workers)

    @cached_property
    def dataset(self) -> Step[Dataset]:
        """Give the step that has the data."""
        if self.config.demo:
            return PrepareDemo(config=self.config)
        return Given(external_dataset(str(self.config.data)))

    def baseline(self) -> Step[Models]:
        """Give the step that has the uncompressed model."""
        if self.config.checkpoint:
            return ExternalBaseline(location=self.config.checkpoint)
        return TrainBaseline(
            architecture=self.config.model,
            hyper_parameters=self.preset.hyper_parameters,
            recipe=self.training,
        )

    @property
    def training(self) -> Recipe:
        """Give the recipe of what is trained from scratch."""
        return baseline_recipe(self.config, self.preset)

    @property
    def structure(self) -> Variant:
        """Give the variant whose structure is trained from scratch, where one is."""
        return next((own for own in self.variants if own.from_scratch), self.variants[0])

    @property
    def settings(self) -> int:
        """Count the further settings of the first variant that are compared."""
        if not self.config.compares_modes:
            return 0
        first = self.variants[0]
        return len(first.ablations(first.template(on_meta(self.model), self.request)))

    @property
    def heading(self) -> dict[str, Any]:
        """Give title and options, for a report."""
        config = self.config
        return {
            "title": f"{self.model.architecture} on {config.data or 'the synthetic demo'}",
            "config": asdict(config),
        }


def rows_of(config: Compress) -> RowOptions:
    """Say what becomes of the numbers of each id."""
    return RowOptions(linear_terms=config.linear_terms, codes=config.codes)


def request_of(config: Compress, chosen: Preset) -> Request:
    """Give what is asked of the variants; until a budget, or a sweep, has chosen, the smallest sizes."""
    given: dict[str, Any] = {}
    if not (config.budgeted or config.sweep):
        given["mlp_rank"] = chosen.mlp_rank if config.mlp_rank is None else config.mlp_rank
        given["mlp_energy"] = config.mlp_energy
        given["embedding_dim"] = chosen.code_dim if config.embedding_dim is None else config.embedding_dim
    if config.sweep_ranks is not None:
        given["linear_ranks"] = tuple(parse_numbers("--sweep-ranks", config.sweep_ranks, int))
    if config.sweep_dims is not None:
        given["embedding_dims"] = tuple(parse_numbers("--sweep-dims", config.sweep_dims, int))
    return Request(
        activation=config.activation,
        kappa=config.kappa,
        absorb=config.linear_terms == "absorb",
        rounded=config.codes == "bfloat16",
        **given,
    )


def ratios_of(config: Compress) -> Sequence[float]:
    """Give how many times smaller the models are that a sweep fine-tunes; none: a choice of its own.

    Raises:
        OptionError: what is no list of numbers, or no model that becomes smaller.
    """
    if config.sweep_ratios is None:
        return ()
    ratios = parse_numbers("--sweep-ratios", config.sweep_ratios)
    if min(ratios) <= 1:
        raise OptionError(
            f"--sweep-ratios {config.sweep_ratios}: how many times smaller, more than 1; try 3,5,10"
        )
    return ratios


def parse_methods(value: str) -> tuple[list[Variant], bool]:
    """Give the variants between commas, as they were registered, and whether scratch is among them.

    Raises:
        OptionError: an unknown name, or one that is there twice, or nothing that compresses.
    """
    every = registered()
    known = [*every, SCRATCH]
    names = [part.strip() for part in value.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise OptionError(
            f"--methods {value!r}: {unknown[0]!r} is no method; choose from {', '.join(known)}, with commas "
            "between them"
        )
    if len(set(names)) < len(names):
        raise OptionError(f"--methods {value!r}: name each method once")
    chosen = [variant for name, variant in every.items() if name in names]
    if not chosen:
        raise OptionError(f"--methods {value!r}: none of them compresses; add one of {', '.join(every)}")
    if SCRATCH in names and not any(variant.from_scratch for variant in chosen):
        raise OptionError(
            f"--methods {value!r}: codes are fitted to a trained table, so {SCRATCH} needs another "
            "structure to train; add afm"
        )
    return chosen, SCRATCH in names


def parse_ship(config: Compress, variants: Sequence[Variant]) -> str:
    """Give the rule by which a model ships, or its row name.

    Raises:
        OptionError: no rule, and none of the models.
    """
    if config.ship is None:
        return SMALLEST if config.sweep else BEST
    names = {BEST: BEST, SMALLEST: SMALLEST}
    large = [own for own in variants if config.budgeted and not own.budgeted]
    if config.ship in {name for own in large for name in (own.tables, own.name)}:
        raise OptionError(
            f"--ship {config.ship}: has a size of its own, whatever the budget; name another model, or give "
            "neither --target-bytes nor --target-ratio"
        )
    if not config.sweep:
        names |= {name: own.tables for own in variants for name in (own.tables, own.name)}
    if config.ship not in names:
        listed = [BEST, SMALLEST, *([] if config.sweep else [own.tables for own in variants])]
        raise OptionError(f"--ship {config.ship!r}: choose from {', '.join(listed)}")
    return names[config.ship]


def warn_of_rounds(config: Compress, rounds: Sequence[Recipe]) -> None:
    """Warn of options that the rounds of fine-tuning have too few evaluations for."""
    evaluations = min(recipe.most_evaluations for recipe in rounds)
    if config.finetune_average and evaluations < 2:
        console.warn("--finetune-average is ignored: a round has one evaluation, so there is no average")
    if config.finetune_patience is not None and config.finetune_patience >= evaluations:
        console.warn(
            f"--finetune-patience {config.finetune_patience} is ignored: the evaluations of a round are "
            f"{evaluations}"
        )


def parse_numbers(option: str, value: str, kind: Callable[[str], float] = float) -> list[Any]:
    """Numbers between commas.

    Raises:
        OptionError: something else is between them, or a number is not positive and finite.
    """
    try:
        numbers = [kind(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise OptionError(f"{option} {value!r}: positive numbers between commas are needed, e.g. 2,4,8")
    return numbers


# What gives the attributes of a recipe, of those that have values which cannot be.
OPTIONS = {
    "seed": "--seed",
    "epochs": "--finetune-epochs",
    "learning_rate": "--finetune-learning-rate",
    "batch_size": "--finetune-batch-size",
    "patience": "--finetune-patience",
    "distill_weight": "--distill",
    "distill_temperature": "--distill-temperature",
}


def baseline_recipe(config: Compress, chosen: Preset) -> Recipe:
    """Give the recipe of the baseline, when it is trained here."""
    return chosen.train.using_options(OPTIONS, **_ways(config))


def _ways(config: Compress) -> dict[str, Any]:
    return {"seed": config.seed, "precision": config.precision, "compile": config.compile or None}


def recipes(config: Compress, chosen: Preset) -> tuple[Recipe, Recipe]:
    """Give the recipes of the two fine-tuning rounds."""
    changes = {
        "epochs": config.finetune_epochs,
        "learning_rate": config.finetune_learning_rate,
        "batch_size": config.finetune_batch_size,
        "trained": config.finetune_weights,
        "average": config.finetune_average or None,
        "patience": config.finetune_patience,
        "distill_weight": config.distill,
        "distill_temperature": config.distill_temperature,
        **_ways(config),
    }
    first, second = (
        recipe.using_options(OPTIONS, **changes)
        for recipe in (chosen.finetune_mlp, chosen.finetune_embedding)
    )
    return first, second
