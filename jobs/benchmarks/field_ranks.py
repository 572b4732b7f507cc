"""Ranks by field against one rank for all fields, at equal bytes and before any fine-tuning.

python -m jobs.benchmarks.field_ranks --data DATA --checkpoints CHECKPOINT [CHECKPOINT ...] --ratios 3 5 8 12

The checkpoints are of uncompressed models. For each and each ratio of bytes the ranks are chosen twice as
jobs/compress.py --target-ratio does it, and the rewritten models are scored in this process. A Markdown
table is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.budget import allocate, structure_bytes
from afm_dist.compression.plan import Plan
from afm_dist.compression.registry import variants
from afm_dist.compression.rewrite import compress_
from afm_dist.compression.targets import target_linears
from afm_dist.compression.variant import FieldRanks, Request
from afm_dist.dataset.labels import SPLITS, check_labels
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import OptionError
from afm_dist.evaluation import metrics
from afm_dist.evaluation.score import score_shards
from afm_dist.runtime import console
from afm_dist.search.search import counted_moments, logit_sensitivity
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.statistics.statistics import Statistics
from jobs.benchmarks.summary import spread

BATCH = 1 << 13
WAYS: tuple[FieldRanks, ...] = ("uniform", "each")


@dataclass(kw_only=True)
class CompareFieldRanks:
    """Compare ranks by field with one rank for all fields, at equal bytes."""

    data: str
    """Dataset directory that the models were trained on."""
    checkpoints: list[str]
    """Uncompressed models, e.g. of several seeds of one architecture."""
    ratios: list[float]
    """How many times fewer bytes the tensors shall have."""


@dataclass(frozen=True)
class RankPoint:
    """What comes of one budget.

    Attributes:
        architecture: Of the model.
        ratio: Of the budget.
        way: How ranks were chosen.
        error: Predicted root mean square change of the logit.
        auc: Of the test split.
        gain: The same, less that of the uncompressed model.
    """

    architecture: str
    ratio: float
    way: FieldRanks
    error: float
    auc: float
    gain: float


def measure(manifest: Manifest, checkpoint: str, ratios: Sequence[float]) -> Iterator[RankPoint]:
    """The points of a model; of a budget that no ranks meet there is none."""
    model, config = from_pretrained(checkpoint), load_config(checkpoint)
    plan = variants()["afm"].template(model, Request(activation="shifted"))
    batches = read_batches(manifest, manifest.shards("train"), BATCH)
    moments = collect_moments(model, batches, target_linears(model), forward_fn=forward_batch)
    moments |= counted_moments(model, manifest, absorb=False)
    sensitivity = logit_sensitivity(model, manifest, [entry.name for entry in plan.entries])
    known = Statistics(moments, sensitivity)

    def auc(plan: Plan) -> float:
        compressed = compress_(from_pretrained(checkpoint), plan, known)
        return metrics.auc(score_shards(compressed, manifest, manifest.shards("test")))

    before = auc(Plan())
    for ratio in ratios:
        budget = int(structure_bytes(config, Plan()) / ratio)
        for way in WAYS:
            try:
                found = allocate(config, plan, known, budget, by_field=way == "each")
            except OptionError as refusal:
                console.warn(f"{checkpoint}, {way}: {refusal}")
                continue
            after = auc(found.plan)
            name = str(config.architecture)
            yield RankPoint(name, ratio, way, found.error**0.5, after, after - before)


def table(points: Iterable[RankPoint]) -> str:
    """Means over the models of one architecture: test AUC less that of the uncompressed model.

    The error ratio is that of the predicted errors, of ranks by field over those of one rank for all; the
    gain is the difference of both models of a pair.
    """
    known = list(points)
    columns = (
        "model",
        "times fewer bytes",
        "predicted error ratio",
        "one rank for all",
        "ranks by field",
        "gain",
    )
    lines = [f"| {' | '.join(columns)} |", "| --- | --: | --: | --: | --: | --: |"]
    for name, ratio in dict.fromkeys((point.architecture, point.ratio) for point in known):
        own = [point for point in known if (point.architecture, point.ratio) == (name, ratio)]
        uniform, each = ([point for point in own if point.way == way] for way in WAYS)
        cells = [name, f"{ratio:g}"]
        if len(uniform) == len(each):
            pairs = list(zip(uniform, each, strict=True))
            shares = [two.error / one.error for one, two in pairs if one.error]
            cells += [
                f"{sum(shares) / len(shares):.2f}" if shares else "–",
                spread([one.gain for one in uniform], sign=True),
                spread([two.gain for two in each], sign=True),
                spread([two.auc - one.auc for one, two in pairs], sign=True),
            ]
        else:
            gains = [[point.gain for point in some] for some in (uniform, each)]
            cells += ["–", *(spread(some, sign=True) if some else "none fit" for some in gains), "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(config: CompareFieldRanks) -> None:
    """Measure all and print the table."""
    manifest = Manifest.load(config.data)
    check_labels(manifest, SPLITS)
    found: list[RankPoint] = []
    for checkpoint in config.checkpoints:
        found += measure(manifest, checkpoint, config.ratios)
    console.out.print(table(found), markup=False, soft_wrap=True)


if __name__ == "__main__":
    console.run_job(CompareFieldRanks, main)
