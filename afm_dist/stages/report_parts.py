"""What reports are made of: spectra and ranks, bytes, curves, facts of the dataset and the run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal

from afm_dist import console, storage
from afm_dist.checkpoint import load_config
from afm_dist.compression.absorb import in_agreeing_units
from afm_dist.compression.factorize import eigendecompose, kept_share
from afm_dist.compression.methods import FACTORIZATIONS, ProjectedOutputs
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import TABLE, Plan, PlanEntry
from afm_dist.compression.ranks import field_key, field_name, in_words, module_name
from afm_dist.dataset import description_json
from afm_dist.dataset.description import Description
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from afm_dist.report.schema import Layer
from afm_dist.runs import STAGE_AGAIN, SUCCESS, Done, Run, Stage, environment
from afm_dist.stages.evaluation import RESULTS, MeasuredSpeed
from afm_dist.stages.training import Models
from afm_dist.training.history import History, summary
from afm_dist.training.recipe import Recipe

FLOAT_BYTES, BFLOAT16_BYTES = 4, 2
SHARES = (0.9, 0.95, 0.99)
RECIPE_KEYS = (
    *("learning_rate", "batch_size", "epochs", "dropout", "l2", "patience"),
    *("trained", "average", "distill_weight", "distill_temperature"),
)


def frame(
    run: Run,
    baseline: Models,
    manifest: Manifest,
    throughput: Stage,
    *,
    title: str,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """What all reports begin with: all but rows, notes and what was compressed.

    Args:
        run: The run directory.
        baseline: The uncompressed model.
        manifest: The dataset.
        throughput: The ``throughput`` stage.
        title: Of the report.
        config: Of the job.
    """
    threads = storage.read_json(throughput.file(RESULTS), MeasuredSpeed, fix=STAGE_AGAIN)["threads"]
    return {
        "format_version": 1,
        "title": title,
        "command": shlex.join(["python", *sys.argv]),
        "commands": [
            {
                "what": "To measure what ships again",
                "command": shlex.join(
                    [
                        *("python", "jobs/evaluate.py", "--data", storage.absolute(manifest.location)),
                        *("--checkpoint", storage.join(run.path, "checkpoint")),
                    ]
                ),
            }
        ],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": data_facts(manifest),
        "environment": environment(),
        "config": dict(config),
        "timings": timings(run),
        "notes": [
            f"Throughput: eager PyTorch on the CPU, batch 10000, {threads} threads, timed in turn with the "
            "baseline; models of the same structure share one measurement."
        ],
        **({"training": training_points(baseline, manifest)} if baseline.histories else {}),
    }


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


def kept_energy(key: str, entry: PlanEntry, known: OutputStatistics) -> float:
    """The share of the variance of some outputs that the factors of an entry keep.

    1 − tr((I − P)Σ(I − P)ᵀ)/tr Σ, with P the projection of the entry's method. P leaves scores that are not
    correlated, so its columns of ``decode``, of length 1, keep the variance of a score each.
    """
    method, own, rank = FACTORIZATIONS[entry.method], known[key], _rank(key, entry)
    if entry.method == "afm" or not isinstance(method, ProjectedOutputs):
        return eigendecompose(own).kept_energy(rank)
    whole = method.projection(key, own.width, own.width, known)
    return kept_share(whole.deviations.square(), rank)


def _rank(key: str, entry: PlanEntry) -> int:
    """Of the module, or the field, that some outputs belong to."""
    field = field_name(key)
    return entry.rank if field is None else entry.rank_of(field)


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
                "rank": _rank(name, entry),
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


def field_rank_notes(plan: Plan) -> list[str]:
    """What the report says of fields with ranks of their own."""
    return [
        f"The fields have ranks of their own: {in_words({entry.name: entry.ranks})}. Fields of one rank are "
        "looked up together; of a field of rank 0 there are no rows, every id has the field's mean."
        for entry in plan.entries
        if entry.ranks is not None
    ]


def absorption_notes(plan: Plan) -> list[str]:
    """What the report says of first-order weights that a table has taken in, and of rounded rows."""
    absorbed = [
        f"The first-order weights of the ids ({entry.absorbs}) are no table any more: they are one more "
        f"coordinate of the rows that were decomposed, and follow from the codes of {entry.name}. The bytes "
        "and the variance of each field are those of both together, a first-order weight counting as much as "
        "the logit feels it beside an embedding's coordinate."
        for entry in plan.entries
        if entry.absorbs is not None
    ]
    rounded = [
        f"The rows of {' and '.join(plan.bfloat16)} are rounded to bfloat16, before fine-tuning and again "
        "after it: the checkpoint has two bytes for each of their numbers. In memory they are float32, and "
        "all figures of the compressed models are of the rounded rows; only the validation scores during "
        "fine-tuning are not."
    ]
    return absorbed + (rounded if plan.bfloat16 else [])


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
    if entry is not None and entry.absorbs is not None:
        dim += 1
    found = []
    for field in manifest.categorical:
        numbers = field.cardinality * dim
        rank = None if entry is None else entry.rank_of(field.name)
        row_bytes = BFLOAT16_BYTES if TABLE in plan.bfloat16 else FLOAT_BYTES
        found.append(
            {
                "field": field.name,
                "rows": field.cardinality,
                "bytes_before": numbers * FLOAT_BYTES,
                "bytes_after": numbers * row_bytes
                if rank is None
                else field.cardinality * rank * row_bytes + dim * (rank + 1) * FLOAT_BYTES,
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
    if (description := _description(manifest)) is not None:
        data["description"] = description
    return data | {key: facts[key] for key in ("bayes_auc", "bayes_log_loss", "bayes_split") if key in facts}


def _description(manifest: Manifest) -> dict[str, Any] | None:
    """Of its fields; a dataset made by other tools may have no vocabularies, or others."""
    if not all(field.name in manifest.vocabulary for field in manifest.categorical):
        return None
    try:
        return description_json.to_json(Description.of(manifest))
    except DataError as error:
        console.warn(f"the report does not describe the data: {error}")
        return None


def timings(run: Run) -> list[dict[str, Any]]:
    """How long each stage of a run took."""
    return [
        {
            "stage": stage.name,
            "seconds": storage.read_json(stage.file(SUCCESS), Done, fix=STAGE_AGAIN)["seconds"],
            "reused": stage.name in run.reused,
        }
        for stage in run.stages
    ]
