"""Ways of fine-tuning, compared on the second round of finished compressions.

python -m jobs.benchmarks.finetuning RUN [RUN ...] [--seeds 0 1 2]

RUN is the run directory of a jobs/compress.py; nothing in it is changed. Its compressed model and its
control are fine-tuned in every way from where its second round began, and a Markdown table is printed.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
import tyro

from afm_dist import storage
from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.files import CONFIG, content_fingerprint
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.dataset.labels import SPLITS, check_labels
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from afm_dist.runtime import console
from afm_dist.runtime.machine import work_in_driver
from afm_dist.stages.evaluation import Subject, measure_quality
from afm_dist.training.fit import fit
from afm_dist.training.history import History
from afm_dist.training.optimizer import sparse_weights
from afm_dist.training.recipe import Recipe, preset
from afm_dist.training.worker import Candidate
from jobs.benchmarks.finished import folder_of, revision
from jobs.benchmarks.summary import data_name, spread
from jobs.compress_options import Compress
from jobs.compress_request import recipes

UNTUNED = "not fine-tuned"
COMPRESSED, CONTROL = "afm-emb", "control"


@dataclass(frozen=True)
class FineTuningWay:
    """A way of fine-tuning.

    Attributes:
        name: In the table.
        slower: By which the recipe's learning rate is divided.
        changes: Other changes of the recipe.
        redrawn: Whether the tables are before the first step; the codes of compressed ones with the
            deviation that uncompressed ones begin with, their projections stay.
    """

    name: str
    slower: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    redrawn: bool = False

    @property
    def slug(self) -> str:
        """The name as part of a path."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def recipe(self, default: Recipe) -> Recipe:
        """The default one with the changes."""
        return default.using(learning_rate=default.learning_rate / self.slower, **self.changes)


WAYS = (
    FineTuningWay("default"),
    FineTuningWay("smaller steps (1/3)", slower=3),
    FineTuningWay("frozen tables", changes={"trained": "dense"}),
    FineTuningWay("factors only", changes={"trained": "factors"}),
    FineTuningWay("averaged", changes={"average": True}),
    FineTuningWay("distilled, w 0.5, T 1", changes={"distill_weight": 0.5}),
    FineTuningWay("distilled, w 0.5, T 2", changes={"distill_weight": 0.5, "distill_temperature": 2.0}),
    FineTuningWay("averaged, distilled, w 0.5, T 1", changes={"average": True, "distill_weight": 0.5}),
    FineTuningWay(
        "frozen tables, distilled, w 0.5, T 1", changes={"trained": "dense", "distill_weight": 0.5}
    ),
    FineTuningWay("tables drawn anew", redrawn=True),
)


@dataclass(frozen=True)
class FineTunedSample:
    """One model of one run, fine-tuned in one way with one seed.

    Attributes:
        data: Dataset.
        model: Architecture, and which of its models.
        way: Of fine-tuning.
        start: Tells samples of the same start and the same order of rows from others.
        validation: AUC of the kept state.
        last: Validation AUC at the last evaluation, of what was scored there (the average, if averaged).
        test: AUC of the kept state on the test split.
    """

    data: str
    model: str
    way: str
    start: str
    validation: float
    last: float
    test: float


@dataclass(frozen=True)
class Start:
    """Where the second round of a compression began.

    Attributes:
        run: Its run directory.
        data: Name of the dataset.
        manifest: The dataset.
        recipe: Of its second round.
        sources: Checkpoints by name.
        teacher: The uncompressed model as it entered the round.
    """

    run: str
    data: str
    manifest: Manifest
    recipe: Recipe
    sources: Mapping[str, str]
    teacher: str

    @classmethod
    def of(cls, run: str) -> Start:
        """Read a run directory.

        Raises:
            DataError: it is none of a compression, or that is not finished.
        """
        run = storage.absolute(run)
        control = storage.join(run, "finetune-mlp/control-mlp/checkpoint")
        sources = {COMPRESSED: storage.join(run, f"rewrite-embedding/{COMPRESSED}"), CONTROL: control}
        for source in sources.values():
            if not storage.exists(storage.join(source, CONFIG)):
                raise DataError(f"{source}: no checkpoint; {run} is no finished run of jobs/compress.py")
        config = storage.read_json(storage.join(run, "config.json"), dict[str, Any])
        known = {one.name for one in fields(Compress)} - {"resources"}
        options = Compress(**{name: value for name, value in config.items() if name in known})
        _, recipe = recipes(options, preset(options.preset))
        manifest = Manifest.load(options.data or storage.join(run, "prepare/data"))
        check_labels(manifest, SPLITS)
        return cls(run, data_name(config), manifest, recipe, sources, control)

    @property
    def architecture(self) -> str:
        """Of all its models."""
        return str(load_config(self.teacher).architecture)


def measure(start: Start, seed: int, folder: str) -> list[FineTunedSample]:
    """Fine-tune in every way; what an earlier call has finished in the same folder is not done again.

    Args:
        start: Where the round begins.
        seed: Of the order of the rows, of dropout and of tables drawn anew.
        folder: To work in.
    """
    default = start.recipe.using(seed=seed)
    by_recipe: dict[Recipe, list[FineTuningWay]] = {}
    for way in WAYS:
        by_recipe.setdefault(way.recipe(default), []).append(way)
    samples: list[FineTunedSample] = []
    for recipe, ways in by_recipe.items():
        # A start of Ray Train costs seconds: one for all that share a recipe.
        place = folder_of(
            folder,
            {
                **asdict(recipe),
                "run": start.run,
                "sources": {name: content_fingerprint(source) for name, source in start.sources.items()},
                "data": start.manifest.fingerprint(),
            },
        )
        candidates = {
            (name, way.name): Candidate(
                name=f"{name}-{way.slug}",
                source=_redrawn(source, storage.join(place, f"{name}-initial"), seed)
                if way.redrawn
                else source,
                output=storage.join(place, f"{name}-{way.slug}"),
                teacher=start.teacher,
            )
            for way in ways
            for name, source in start.sources.items()
        }
        histories = fit(list(candidates.values()), start.manifest, recipe, folder=place, fine_tuning=True)
        for (name, way_name), candidate in candidates.items():
            history = histories[candidate.name]
            samples.append(_sample(start, seed, name, way_name, candidate.checkpoint, history))
            if way_name == WAYS[0].name:
                before = History(curve=history.curve[:1], kept_step=0)
                samples.append(_sample(start, seed, name, UNTUNED, start.sources[name], before))
    return samples


def _sample(
    start: Start, seed: int, name: str, way: str, checkpoint: str, history: History
) -> FineTunedSample:
    subject = Subject(name=name, stage=way, checkpoint=checkpoint)
    return FineTunedSample(
        data=start.data,
        model=f"{start.architecture}, {name}",
        way=way,
        start=f"{start.run} {seed}",
        validation=history.best.validation_auc,
        last=history.curve[-1].validation_auc,
        test=measure_quality(subject, start.manifest, "test")["auc"],
    )


def _redrawn(source: str, target: str, seed: int) -> str:
    """A copy of a checkpoint with tables as in the beginning; its location."""
    if not storage.exists(storage.join(target, CONFIG)):
        model = from_pretrained(source)
        torch.manual_seed(seed)
        for name in sparse_weights(model):
            table: Any = model.get_submodule(name.rpartition(".")[0])
            table.reset_table()
        save_pretrained(model, target, load_config(source))
    return target


def table(samples: Iterable[FineTunedSample]) -> str:
    """A row per dataset, model and way; below, the way with the best mean validation AUC of each model.

    Raises:
        DataError: a run was given twice.
    """
    groups: dict[tuple[str, str], dict[str, dict[str, FineTunedSample]]] = {}
    for sample in samples:
        starts = groups.setdefault((sample.data, sample.model), {}).setdefault(sample.way, {})
        if sample.start in starts:
            raise DataError(f"{sample.data}, {sample.model}: two samples of {sample.start}")
        starts[sample.start] = sample
    head = ["data", "model", "fine-tuning", "n", "validation AUC", "test AUC"]
    head += ["validation − not", "test − not", "last evaluation − not, validation"]
    lines = [head, [*["---"] * 3, *["--:"] * (len(head) - 3)]]
    choices = []
    for (data, model), ways in sorted(groups.items()):
        best = chosen(ways)
        for way in (UNTUNED, *(one.name for one in WAYS)):
            if way in ways:
                shown = f"**{way}**" if way == best else way
                lines.append([data, model, shown, str(len(ways[way])), *_cells(ways[way], ways[UNTUNED])])
        choices.append(f"Chosen by validation for {data}, {model}: {best}.")
    rows = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([*rows, "", *choices, f"Revision {revision()}."])


def chosen(ways: Mapping[str, Mapping[str, FineTunedSample]]) -> str:
    """The way with the best mean validation AUC; the first of those, if several are as good."""
    return max(ways, key=lambda way: statistics.mean(one.validation for one in ways[way].values()))


def _cells(own: Mapping[str, FineTunedSample], untuned: Mapping[str, FineTunedSample]) -> list[str]:
    samples: Sequence[FineTunedSample] = list(own.values())
    before: Sequence[FineTunedSample] = [untuned[start] for start in own]
    pairs = list(zip(samples, before, strict=True))
    return [
        spread([one.validation for one in samples]),
        spread([one.test for one in samples]),
        spread([one.validation - other.validation for one, other in pairs], sign=True),
        spread([one.test - other.test for one, other in pairs], sign=True),
        spread([one.last - other.validation for one, other in pairs], sign=True),
    ]


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Compare ways of fine-tuning."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of jobs/compress.py."""
    seeds: tuple[int, ...] = (0,)
    """Of the order of rows, dropout and tables drawn anew: each run is fine-tuned once with each."""
    output: str = "runs/finetuning"
    """Where the fine-tuned models go; what is finished there is not done again."""


def main(config: FineTuning) -> None:
    """Run the job."""
    starts = [Start.of(run) for run in config.runs]
    work_in_driver()
    samples: list[FineTunedSample] = []
    for start in starts:
        for seed in config.seeds:
            console.info(f"{start.run}, seed {seed}")
            samples += measure(start, seed, storage.absolute(config.output))
    console.info(table(samples))


if __name__ == "__main__":
    console.run_job(FineTuning, main)
