"""The ablation: methods, ReLU modes, what becomes of the first-order weights, and distillation.

python -m jobs.benchmarks.ablation --data DATA --checkpoints CHECKPOINT [CHECKPOINT ...] [--finetune off]

The checkpoints are of uncompressed models of one architecture, trained with different seeds. Each is
compressed in every combination, layers and table at once, from statistics that are collected once; scored
on the test split; fine-tuned for one round beside the uncompressed model, once with each weight of
distillation; and scored again. Two Markdown tables are printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal, get_args

from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, check_schema, load_config
from afm_dist.checkpoint.files import CONFIG, content_fingerprint, size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.plan import TABLE, Plan
from afm_dist.compression.sequential import compress_sequentially_
from afm_dist.compression.targets import target_linears
from afm_dist.compression.variant import Request
from afm_dist.dataset.labels import SPLITS, check_labels
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import OptionError
from afm_dist.evaluation import metrics
from afm_dist.evaluation.score import score_shards
from afm_dist.methods.low_rank.config import ACTIVATIONS, DEFAULT_KAPPA
from afm_dist.methods.low_rank.grid import GridPoint
from afm_dist.methods.low_rank.variants import VARIANTS
from afm_dist.runtime import console
from afm_dist.runtime.machine import work_in_driver
from afm_dist.search.rows import LinearTerms, RowOptions
from afm_dist.search.search import counted_moments, logit_sensitivity
from afm_dist.stages.compression import check_model, write_compressed
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.keys import module_name
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.training.fit import fit
from afm_dist.training.recipe import Recipe, preset
from afm_dist.training.worker import Candidate
from jobs.benchmarks.ablation_tables import Combination, Measured, effects_table, grid_table, references
from jobs.benchmarks.finished import folder_of, revision

BATCH = 1 << 13
PRESET = preset("default")
DISTILL = (0.0, 0.5)
METHODS = {variant.name: variant for variant in VARIANTS}
# All but the first need a first-order term over the fields of the table.
LINEAR_TERMS: tuple[LinearTerms, ...] = get_args(LinearTerms)
BASELINE, CONTROL = "baseline", "control"


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Compare methods, ReLU modes, linear terms and distillation, in all combinations."""

    data: str
    """Dataset directory that the models were trained on."""
    checkpoints: tuple[str, ...]
    """Uncompressed models of one architecture, trained with different seeds."""
    mlp_rank: int = PRESET.mlp_rank
    """Rank of the MLP's second and third linear layers."""
    embedding_dim: int = PRESET.code_dim
    """Embedding dimension after compression."""
    distill: tuple[float, ...] = DISTILL
    """Weights, below 1, of the uncompressed model's predictions in the loss of fine-tuning."""
    finetune: Literal["on", "off"] = "on"
    """Fine-tune each model for one round, with the default preset's second recipe; the n-th checkpoint's
    models with the n-th seed."""
    batch_size: int | None = None
    """Rows of a batch in fine-tuning; without it the preset's."""
    output: str = "runs/ablation"
    """Where the models go; what is finished there is not done again."""

    def recipes(self, seed: int) -> dict[float, Recipe]:
        """By weight of distillation; none without fine-tuning."""
        if self.finetune == "off":
            return {}
        options = {"batch_size": "--batch-size", "distill_weight": "--distill"}
        return {
            weight: PRESET.finetune_embedding.using_options(
                options, batch_size=self.batch_size, seed=seed, distill_weight=weight
            )
            for weight in self.distill
        }


def combinations(model: nn.Module) -> list[Combination]:
    """All that can be done with a model."""
    declared = TABLE in getattr(type(model), "absorbs", {})
    terms = LINEAR_TERMS if declared else LINEAR_TERMS[:1]
    return [Combination(*levels) for levels in product(METHODS, ACTIVATIONS, terms)]


def rows_of(one: Combination) -> RowOptions:
    """What becomes of the numbers of each id."""
    return RowOptions(linear_terms=one.linear_terms)


def combination_plan(
    model: nn.Module, one: Combination, *, linear_rank: int, embedding_dim: int | None
) -> Plan:
    """What becomes of a model.

    Args:
        model: The uncompressed one.
        one: How.
        linear_rank: Of its linear layers.
        embedding_dim: Of its table; None leaves it as it is.
    """
    request = Request(activation=one.activation, kappa=DEFAULT_KAPPA, absorb=one.linear_terms == "absorb")
    plan = METHODS[one.method].template(model, request)
    point = GridPoint(
        method=METHODS[one.method].factors, linear_rank=linear_rank, embedding_dim=embedding_dim
    )
    return point.plan(plan, table=TABLE) + rows_of(one).rounded(model)


def check(config: Ablation, manifest: Manifest) -> None:
    """Refuse what cannot be compared, before anything is started.

    Raises:
        OptionError: a checkpoint of another architecture, one that is compressed, or one that was given
            twice; a rank larger than its layer; a weight that is none.
        DataError: a checkpoint of another schema.
    """
    for option, values in (("checkpoints", config.checkpoints), ("distill", config.distill)):
        if not values:
            raise OptionError(f"--{option}: give one value at least")
    first, *others = configs = [load_config(checkpoint) for checkpoint in config.checkpoints]
    for checkpoint, own in zip(config.checkpoints, configs, strict=True):
        if own.plan.modules:
            raise OptionError(f"--checkpoints: {checkpoint} is compressed already; give uncompressed models")
    for checkpoint, other in zip(config.checkpoints[1:], others, strict=True):
        if replace(other, fields=first.fields) != first:
            raise OptionError(
                f"--checkpoints: {checkpoint} is a {_in_words(other)}, and {config.checkpoints[0]} is a "
                f"{_in_words(first)}; give models of one architecture, trained with different seeds"
            )
    request = Request(mlp_rank=config.mlp_rank, embedding_dim=config.embedding_dim)
    contents: dict[str, str] = {}
    for checkpoint, own in zip(config.checkpoints, configs, strict=True):
        check_schema(own, manifest, checkpoint=checkpoint)
        content = content_fingerprint(checkpoint)
        if content in contents:
            raise OptionError(
                f"--checkpoints: {contents[content]} and {checkpoint} are the same model; give each once"
            )
        contents[content] = checkpoint
        check_model(own, VARIANTS[:1], request, checkpoint=checkpoint)
    if len(set(config.distill)) < len(config.distill):
        raise OptionError(f"--distill {' '.join(map(str, config.distill))}: give each weight once")
    config.recipes(seed=0)
    for option, given in (("distill", config.distill != DISTILL), ("batch-size", config.batch_size)):
        if given and config.finetune == "off":
            console.warn(f"--{option} is ignored: --finetune is off")


def _in_words(config: ModelConfig) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in config.hyper_parameters.items())
    return f"{config.architecture} ({sizes})"


def measure(config: Ablation, manifest: Manifest, index: int) -> Measured:
    """All combinations of one model; what an earlier call has finished in the same folder is not done again.

    Args:
        config: What is compared.
        manifest: The dataset.
        index: Of the checkpoint.
    """
    source, output = storage.absolute(config.checkpoints[index]), storage.absolute(config.output)
    facts: dict[str, Any] = {
        "source": content_fingerprint(source),
        "data": manifest.fingerprint(),
        "ranks": [config.mlp_rank, config.embedding_dim],
    }
    folder = folder_of(output, facts)
    every = combinations(from_pretrained(source))
    compressed = {one: storage.join(folder, one.name) for one in every}
    _compress(config, manifest, source, compressed)
    before = _score({BASELINE: source, **{one.name: compressed[one] for one in every}}, manifest, folder)
    control, after = {}, {}
    for weight, recipe in config.recipes(seed=index).items():
        place = folder_of(output, {**facts, "recipe": asdict(recipe)})
        sources = {CONTROL: source, **{one.name: path for one, path in compressed.items()}}
        candidates = [
            Candidate(name=name, source=path, output=storage.join(place, name), teacher=source)
            for name, path in sources.items()
        ]
        fit(candidates, manifest, recipe, folder=place, fine_tuning=True)
        auc = _score({one.name: one.checkpoint for one in candidates}, manifest, place)
        control[weight] = auc[CONTROL]
        after[weight] = {one: auc[one.name] for one in every}
    whole = size_on_disk(source)
    return Measured(
        baseline=before[BASELINE],
        smaller={one: whole / size_on_disk(compressed[one]) for one in every},
        before={one: before[one.name] for one in every},
        control=control,
        after=after,
    )


def _compress(config: Ablation, manifest: Manifest, source: str, targets: Mapping[Combination, str]) -> None:
    """Write the compressed models that are not there yet."""
    left = [one for one, path in targets.items() if not storage.exists(storage.join(path, CONFIG))]
    if not left:
        return
    console.info("  statistics")
    model = from_pretrained(source)
    linears = _linear_moments(model, manifest, target_linears(model))
    joint = sorted({rows_of(one).absorb for one in left})
    tables = {absorb: counted_moments(model, manifest, absorb) for absorb in joint}
    names = [*target_linears(model), TABLE]
    sensitivities = {absorb: logit_sensitivity(model, manifest, names, absorb=absorb) for absorb in joint}
    behind: dict[str, Mapping[str, Moments]] = {}
    for one in left:
        absorb, own = rows_of(one).absorb, linears
        if METHODS[one.method].behind_compressed:
            # They follow from the factors of the layers alone, not from what becomes of the table.
            if one.activation not in behind:
                plan = combination_plan(model, one, linear_rank=config.mlp_rank, embedding_dim=None)
                behind[one.activation] = _sequential_moments(source, plan, manifest, linears)
            own = behind[one.activation]
        plan = combination_plan(model, one, linear_rank=config.mlp_rank, embedding_dim=config.embedding_dim)
        write_compressed(source, targets[one], plan, {**own, **tables[absorb]}, sensitivities[absorb])


def _linear_moments(model: nn.Module, manifest: Manifest, names: Sequence[str]) -> Mapping[str, Moments]:
    batches = read_batches(manifest, manifest.shards("train"), BATCH)
    return collect_moments(model, batches, names, forward_fn=forward_batch)


def _sequential_moments(
    source: str, plan: Plan, manifest: Manifest, linears: Mapping[str, Moments]
) -> Mapping[str, Moments]:
    """Of each linear layer, behind those before it as the plan compresses them."""

    def collect(model: nn.Module, name: str) -> Mapping[str, Moments]:
        if name == plan.entries[0].name:
            return {key: own for key, own in linears.items() if module_name(key) == name}
        return _linear_moments(model, manifest, [name])

    return compress_sequentially_(from_pretrained(source), plan, collect)


def _score(checkpoints: Mapping[str, str], manifest: Manifest, folder: str) -> dict[str, float]:
    """Test AUC by name; each is written to a file of the folder as soon as it is known."""
    found: dict[str, float] = {}
    with console.progress("scoring", len(checkpoints), "models") as advance:
        for name, checkpoint in checkpoints.items():
            result = storage.join(folder, f"{name}.json")
            if not storage.exists(result):
                scored = score_shards(from_pretrained(checkpoint), manifest, manifest.shards("test"))
                storage.write_json(result, {"auc": metrics.auc(scored)})
            found[name] = storage.read_json(result, dict[str, float])["auc"]
            advance(1)
    return found


def page(config: Ablation, models: Sequence[Measured], architecture: str) -> str:
    """What is printed, in Markdown."""
    many = f"{len(models)} model{'s' if len(models) > 1 else ''}"
    lines = [
        f"{architecture}, {many}, linear layers to rank {config.mlp_rank}, tables to "
        f"{config.embedding_dim} dimensions. {references(models)}",
        effects_table(models),
        grid_table(models),
        f"Revision {revision()}.",
    ]
    return "\n\n".join(lines)


def main(config: Ablation) -> None:
    """Run the job."""
    manifest = Manifest.load(storage.absolute(config.data))
    check_labels(manifest, SPLITS)
    check(config, manifest)
    work_in_driver()
    models = []
    for index, checkpoint in enumerate(config.checkpoints):
        console.info(checkpoint)
        models.append(measure(config, manifest, index))
    console.info(page(config, models, str(load_config(config.checkpoints[0]).architecture)))


if __name__ == "__main__":
    console.run_job(Ablation, main)
