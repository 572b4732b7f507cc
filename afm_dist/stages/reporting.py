"""The last stages: gathering the evidence, writing the report, shipping the checkpoint."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import torch

from afm_dist import console, report, storage
from afm_dist.checkpoint import load_config
from afm_dist.compression.absorb import in_agreeing_units
from afm_dist.compression.factorize import eigendecompose
from afm_dist.compression.methods import FACTORIZATIONS, ProjectedOutputs
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.ranks import field_key, module_name
from afm_dist.dataset.manifest import Manifest
from afm_dist.report.degenerate_words import degenerate_layers
from afm_dist.report.schema import Layer
from afm_dist.runs import SUCCESS, Run, Stage, environment
from afm_dist.stages.budget import RANKS, Ranks
from afm_dist.stages.compression import COMPARED, MOMENTS, SENSITIVITY, TABLE
from afm_dist.stages.evaluation import RESULTS, Subject, rows_of
from afm_dist.stages.methods import AFM, SCRATCH, Methods
from afm_dist.stages.training import Models
from afm_dist.statistics.moments_file import load_moments
from afm_dist.statistics.sensitivity_file import load_sensitivity
from afm_dist.training.history import History, summary
from afm_dist.training.recipe import Recipe
from afm_dist.training.wording import in_words

FLOAT_BYTES = 4
SHARES = (0.9, 0.95, 0.99)
RECIPE_KEYS = (
    *("learning_rate", "batch_size", "epochs", "dropout", "l2", "patience"),
    *("trained", "average", "distill_weight", "distill_temperature"),
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a report is made of: the run's stages and what they left.

    Attributes:
        manifest: The dataset.
        baseline: The uncompressed model.
        linear_statistics: Moments of the MLP's layers.
        linear_rewrite: Low-rank models before fine-tuning.
        linear_finetune: The first round.
        table_statistics: Moments of the fields.
        table_rewrite: Models with narrow tables before fine-tuning.
        table_finetune: The second round.
        linear_recipe: Of the first round.
        table_recipe: Of the second round.
        subjects: Rows of the table.
        quality: The ``evaluate`` stage.
        throughput: The ``throughput`` stage.
        ablation: Whether the ReLU modes were compared.
        ranks: Those of a budget; None: there was none.
        methods: What the run compares.
        scratch: The small model trained from scratch; None: there was none.
        table_sensitivity: Of the logit to the rows of AFM's tables; None: not measured.
    """

    manifest: Manifest
    baseline: Models
    linear_statistics: Stage
    linear_rewrite: Models
    linear_finetune: Models
    table_statistics: Stage
    table_rewrite: Models
    table_finetune: Models
    linear_recipe: Recipe
    table_recipe: Recipe
    subjects: Sequence[Subject]
    quality: Stage
    throughput: Stage
    ablation: bool
    ranks: Ranks | None = None
    methods: Methods = COMPARED
    scratch: Models | None = None
    table_sensitivity: Stage | None = None

    @property
    def stages(self) -> list[Stage]:
        """Every stage the report reads."""
        return [
            self.baseline.stage,
            self.linear_statistics,
            self.linear_rewrite.stage,
            self.linear_finetune.stage,
            self.table_statistics,
            self.table_rewrite.stage,
            self.table_finetune.stage,
            self.quality,
            self.throughput,
            *([] if self.ranks is None else [self.ranks.stage]),
            *([] if self.scratch is None else [self.scratch.stage]),
            *([] if self.table_sensitivity is None else [self.table_sensitivity]),
        ]


def subjects_of(
    baseline: Models,
    rewritten: Models,
    tuned: Models,
    narrow: Models,
    final: Models,
    methods: Methods,
    scratch: Models | None,
) -> list[Subject]:
    """The rows of the table, in its order: baseline, controls, the methods, ablations, then from scratch."""
    before = rewritten.checkpoints | narrow.checkpoints
    after = tuned.checkpoints | final.checkpoints
    subjects = [Subject(name="baseline", stage="trained", checkpoint=baseline.checkpoints["baseline"])]
    for name in ("control-mlp", "control"):
        subjects.append(Subject(name=name, stage="after-finetune", checkpoint=after[name]))
    leading = [name for method in methods.factored for name in (method.linears, method.tables)]
    for name in [*leading, *(name for name in before if name not in leading)]:
        subjects.append(Subject(name=name, stage="before-finetune", checkpoint=before[name]))
        subjects.append(Subject(name=name, stage="after-finetune", checkpoint=after[name]))
    if scratch is not None:
        subjects.append(Subject(name=SCRATCH, stage="trained", checkpoint=scratch.checkpoints[SCRATCH]))
    return subjects


def ship(run: Run, models: Models, name: str) -> Stage:
    """Copy the chosen checkpoint to ``checkpoint/``."""
    return run.stage(
        "checkpoint",
        lambda folder: storage.copy(models.checkpoints[name], folder),
        config={"name": name},
        inputs=[models.stage],
    )


def write_report(run: Run, evidence: Evidence, *, title: str, config: Mapping[str, Any]) -> Stage:
    """Write ``report/`` with ``report.json``, ``report.md`` and ``report.html``."""

    def work(folder: str) -> None:
        report.write_report(_content(run, evidence, title, config), folder)

    return run.stage("report", work, config={"title": title}, inputs=evidence.stages)


def say_result(run: Run, written: Stage, shipped: Stage) -> None:
    """Print the table and where everything is."""
    console.out.print(report.table(storage.read_json(written.file("report.json"))))
    if not run.redone:
        console.say("every stage is up to date: nothing was done")
    console.say(f"checkpoint: {shipped.path}")
    console.say(f"report:     {written.file('report.html')}")


def _content(run: Run, evidence: Evidence, title: str, config: Mapping[str, Any]) -> dict[str, Any]:
    tuned = evidence.linear_finetune.histories | evidence.table_finetune.histories
    table_plan = _plan(evidence.table_rewrite, AFM.tables)
    felt = evidence.table_sensitivity
    table_moments = decomposed(
        OutputStatistics(
            load_moments(evidence.table_statistics.file(MOMENTS)),
            None if felt is None else load_sensitivity(felt.file(SENSITIVITY)),
        ),
        table_plan,
    )
    compressed = [
        *layers(
            OutputStatistics(load_moments(evidence.linear_statistics.file(MOMENTS))),
            _plan(evidence.linear_rewrite, AFM.linears),
        ),
        *layers(table_moments, table_plan),
    ]
    notes = row_notes(tuned, "control-mlp") | _scratch_note(evidence.scratch)
    rows = rows_of(evidence.quality, evidence.throughput, evidence.subjects, notes)
    chosen = tuned[AFM.tables]
    threads = storage.read_json(evidence.throughput.file(RESULTS))["threads"]
    content: dict[str, Any] = {
        "format_version": 1,
        "title": title,
        "command": shlex.join(["python", *sys.argv]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": [row for row in rows if not _is_ablation(row["name"])],
        "shipped": {
            "name": AFM.tables,
            "stage": "after-finetune",
            "checkpoint": storage.join(run.path, "checkpoint"),
            "reason": f"kept {summary(chosen)['kept']}: {summary(chosen)['reason']}",
        },
        "layers": compressed,
        "finetuning": [
            *curves("mlp", evidence.linear_finetune, evidence.linear_recipe),
            *curves("embedding", evidence.table_finetune, evidence.table_recipe),
        ],
        "relu_modes": _relu_modes(evidence, rows),
        "tables": tables(
            evidence.baseline.checkpoints["baseline"], evidence.manifest, table_moments, table_plan
        ),
        "data": data_facts(evidence.manifest),
        "environment": environment(),
        "config": dict(config),
        "timings": timings(run),
        "notes": [
            f"Throughput: eager PyTorch on the CPU, batch 10000, {threads} threads, timed in turn with the "
            "baseline; models of the same structure share one measurement.",
            *evidence.methods.notes,
            _finetuning_note(evidence),
            *([] if evidence.ranks is None else [_budget_note(evidence.ranks)]),
            *absorption_notes(table_plan),
            *degenerate_layers(compressed),
        ],
    }
    if evidence.baseline.histories:
        content["training"] = training_points(evidence.baseline, evidence.manifest)
    return content


def _finetuning_note(evidence: Evidence) -> str:
    return (
        f"Fine-tuning after the MLP: {in_words(evidence.linear_recipe)}. After the tables: "
        f"{in_words(evidence.table_recipe)}. In both, what is kept of each model, the control included, is "
        "the state with the best validation AUC; the one before fine-tuning competes, so by validation "
        "fine-tuning is never worse than none."
    )


def _budget_note(ranks: Ranks) -> str:
    chosen = storage.read_json(ranks.stage.file(RANKS))
    errors = ", ".join(f"{name} {math.sqrt(error):.2g}" for name, error in chosen["errors"].items())
    return (
        f"Ranks for a budget of {chosen['budget']:,} bytes: those with the least predicted change of the "
        f"logit (root mean square, by module: {errors}), to first order, before fine-tuning and without what "
        "a ReLU between factors cuts."
    )


def _is_ablation(name: str) -> bool:
    return name.startswith("afm-mlp-")


def row_notes(tuned: Mapping[str, History], control: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Validation AUC of every row, and what fine-tuning kept.

    Args:
        tuned: By name.
        control: Which of them began as the baseline.
    """
    notes: dict[tuple[str, str], dict[str, Any]] = {}
    for name, history in tuned.items():
        notes[name, "before-finetune"] = {"validation_auc": history.curve[0].validation_auc}
        notes[name, "after-finetune"] = {
            "validation_auc": history.best.validation_auc,
            "note": f"kept: {summary(history)['kept']}",
        }
    notes["baseline", "trained"] = {"validation_auc": tuned[control].curve[0].validation_auc}
    return notes


def _scratch_note(scratch: Models | None) -> dict[tuple[str, str], dict[str, Any]]:
    if scratch is None:
        return {}
    history = scratch.histories[SCRATCH]
    note = f"kept: {summary(history)['kept']}"
    return {(SCRATCH, "trained"): {"validation_auc": history.best.validation_auc, "note": note}}


def kept_energy(key: str, entry: PlanEntry, known: OutputStatistics) -> float:
    """The share of the variance of some outputs that the factors of an entry keep.

    1 − tr((I − P)Σ(I − P)ᵀ)/tr Σ, with P the projection of the entry's method.
    """
    method, own = FACTORIZATIONS[entry.method], known[key]
    total = float(own.covariance.trace())
    if entry.method == "afm" or not isinstance(method, ProjectedOutputs) or total <= 0:
        return eigendecompose(own).kept_energy(entry.rank)
    projection = method.projection(key, own.width, entry.rank, known)
    rest = torch.eye(own.width, dtype=torch.float64) - projection.decode @ projection.encode
    return 1 - float((rest @ own.covariance * rest).sum()) / total


def layers(known: OutputStatistics, plan: Plan) -> list[Layer]:
    """The spectrum and the rank of everything that a plan compresses.

    Args:
        known: Of the outputs.
        plan: What was done.
    """
    entries = {entry.name: entry for entry in plan.entries}
    found: list[Layer] = []
    for name, own in known.items():
        entry = entries.get(module_name(name))
        if entry is None:
            continue
        spectrum = eigendecompose(own)
        kind: Literal["embedding", "linear"] = "embedding" if entry.name == TABLE else "linear"
        found.append(
            {
                "name": name,
                "kind": kind,
                "method": entry.method,
                "width": spectrum.width,
                "rank": entry.rank,
                "kept_energy": kept_energy(name, entry, known),
                "components": {str(share): spectrum.rank_for_energy(share) for share in SHARES},
                "components_singular": {
                    str(share): spectrum.rank_for_singular_values(share) for share in SHARES
                },
                "rank_deficiency": spectrum.rank_deficiency,
                "rank_needed": spectrum.needed_rank,
                "count": own.count,
                "activation": entry.activation if kind == "linear" else None,
                "eigenvalues": spectrum.eigenvalues.tolist(),
            }
        )
    return found


def _plan(models: Models, name: str) -> Plan:
    return Plan.load(storage.join(models.checkpoints[name], "plan.json"))


def curves(round_name: str, models: Models, recipe: Recipe) -> list[dict[str, Any]]:
    """What a round of fine-tuning saw and kept of each model."""
    return [
        {
            "name": name,
            "round": round_name,
            "kept_step": history.kept_step,
            **summary(history),
            "recipe": {key: value for key, value in asdict(recipe).items() if key in RECIPE_KEYS},
            "curve": [asdict(point) for point in history.curve],
        }
        for name, history in models.histories.items()
    ]


def training_points(baseline: Models, manifest: Manifest) -> list[dict[str, Any]]:
    """What the training of the baseline saw."""
    rows = manifest.rows("train")
    return [
        {"epoch": -(-point.rows // rows), **asdict(point)} for point in baseline.histories["baseline"].curve
    ]


def _relu_modes(evidence: Evidence, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not evidence.ablation:
        return []
    entries = _plan(evidence.linear_rewrite, "afm-mlp").entries
    if not entries:
        return []
    chosen, modes = entries[0].activation, []
    for row in rows:
        if row["name"] == "afm-mlp" or _is_ablation(row["name"]):
            mode = row["name"].removeprefix("afm-mlp").removeprefix("-") or chosen
            keys = ("stage", "auc", "log_loss", "validation_auc")
            modes.append({"activation": mode, "chosen": mode == chosen, **{key: row[key] for key in keys}})
    return modes


def decomposed(known: OutputStatistics, plan: Plan) -> OutputStatistics:
    """The statistics as AFM decomposed them: absorbed first-order weights in the unit in which they count.

    Args:
        known: Of the outputs; of absorbed weights with the sensitivity.
        plan: What was done.
    """
    absorbing = {entry.name for entry in plan.entries if entry.absorbs is not None}
    if not absorbing:
        return known
    return in_agreeing_units(known, [key for key in known if module_name(key) in absorbing])


def absorption_notes(plan: Plan) -> list[str]:
    """What the report says of first-order weights that a table has taken in."""
    return [
        f"The first-order weights of the ids ({entry.absorbs}) are no table any more: they are one more "
        f"coordinate of the rows that were decomposed, and follow from the codes of {entry.name}. The bytes "
        "and the variance of each field are those of both together, a first-order weight counting as much as "
        "the logit feels it beside an embedding's coordinate."
        for entry in plan.entries
        if entry.absorbs is not None
    ]


def tables(checkpoint: str, manifest: Manifest, known: OutputStatistics, plan: Plan) -> list[dict[str, Any]]:
    """Bytes of each field's embedding rows before and after; with the first-order weights if absorbed.

    Args:
        checkpoint: Of the uncompressed model.
        manifest: The dataset.
        known: Of the fields.
        plan: What was done.
    """
    dim = int(load_config(checkpoint).hyper_parameters["embedding_dim"])
    entry = next((entry for entry in plan.entries if entry.name == TABLE), None)
    rank = None if entry is None else entry.rank
    if entry is not None and entry.absorbs is not None:
        dim += 1
    found = []
    for field in manifest.categorical:
        numbers = field.cardinality * dim
        found.append(
            {
                "field": field.name,
                "rows": field.cardinality,
                "bytes_before": numbers * FLOAT_BYTES,
                "bytes_after": FLOAT_BYTES
                * (numbers if rank is None else field.cardinality * rank + dim * (rank + 1)),
                "kept_energy": 1.0
                if entry is None
                else kept_energy(field_key(TABLE, field.name), entry, known),
            }
        )
    return found


def data_facts(manifest: Manifest) -> dict[str, Any]:
    """What a report says of a dataset."""
    facts = manifest.facts
    splits: dict[str, dict[str, Any]] = {}
    for name in manifest.splits:
        rows = sum(shard.rows for shard in manifest.splits[name])
        splits[name] = {"rows": rows}
        positives = facts.get("splits", {}).get(name, {}).get("positives")
        if rows and positives is not None:
            splits[name]["positive_share"] = positives / rows
    data: dict[str, Any] = {
        "name": ", ".join(str(source.get("name", "?")) for source in manifest.sources) or manifest.location,
        "preset": manifest.preset,
        "fields": {"categorical": len(manifest.categorical), "numeric": len(manifest.numeric)},
        "ids": sum(field.cardinality for field in manifest.categorical),
        "splits": splits,
        "fingerprint": manifest.fingerprint(),
    }
    return data | {key: facts[key] for key in ("bayes_auc", "bayes_log_loss", "bayes_split") if key in facts}


def timings(run: Run) -> list[dict[str, Any]]:
    """How long each stage of a run took."""
    return [
        {
            "stage": stage.name,
            "seconds": storage.read_json(stage.file(SUCCESS))["seconds"],
            "reused": stage.name in run.reused,
        }
        for stage in run.stages
    ]
