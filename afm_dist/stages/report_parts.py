"""What reports are made of: spectra and ranks, bytes, curves, facts of the dataset and the run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, cast

import torch

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.compression.plan import TABLE, Plan
from afm_dist.compression.registry import facts_of
from afm_dist.compression.rewrite import restructure_, stored_dtypes
from afm_dist.dataset import description_json
from afm_dist.dataset.description import Description
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from afm_dist.modules.tensors import named_tensors
from afm_dist.report.schema import Layer
from afm_dist.runs.run import STAGE_FIX, Run, Stage, environment, read_success
from afm_dist.runtime import console
from afm_dist.stages.evaluation import RESULTS, MeasuredSpeed
from afm_dist.stages.training import Models
from afm_dist.statistics.keys import field_key, module_name
from afm_dist.statistics.statistics import Statistics
from afm_dist.training.history import History, summary
from afm_dist.training.recipe import Recipe

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
    """Collect what all reports begin with: all but rows, notes and what was compressed.

    Args:
        run: The run directory.
        baseline: The uncompressed model.
        manifest: The dataset.
        throughput: The ``throughput`` stage.
        title: Of the report.
        config: Of the job.
    """
    threads = storage.read_json(throughput.file(RESULTS), MeasuredSpeed, fix=STAGE_FIX)["threads"]
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
    """Describe the validation AUC of every row, and what fine-tuning kept.

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


def layers(known: Statistics, plan: Plan) -> list[Layer]:
    """Describe everything that a plan compresses, as each method says it.

    Args:
        known: Of the outputs.
        plan: What was done.
    """
    found: list[Layer] = []
    for key, own in known.items():
        for entry in plan.entries:
            if entry.name != module_name(key):
                continue
            facts = facts_of(type(entry.config)).layer(key, entry.config, known)
            if facts is None:
                continue
            layer: dict[str, Any] = {
                "name": key,
                "kind": "embedding" if entry.name == TABLE else "linear",
                "method": entry.config.label,
                "width": own.width,
                "count": own.count,
                **({} if "rank" in facts else {"details": entry.config.details()}),
                **facts,
            }
            found.append(cast(Layer, layer))
    return found


def curves(round_name: str, models: Models, recipe: Recipe) -> list[dict[str, Any]]:
    """Describe what a round of fine-tuning saw and kept of each model."""
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
    """Describe what the training of the baseline saw."""
    rows = manifest.rows("train")
    return [
        {"epoch": -(-point.rows // rows), **asdict(point)} for point in baseline.histories["baseline"].curve
    ]


def plan_notes(plan: Plan) -> list[str]:
    """Describe what a reader must know of what was done, as each method puts it."""
    kinds = dict.fromkeys(type(entry.config) for entry in plan.entries)
    return [
        note
        for kind in kinds
        for note in facts_of(kind).notes([entry for entry in plan.entries if type(entry.config) is kind])
    ]


def tables(checkpoint: str, known: Statistics, plan: Plan) -> list[dict[str, Any]]:
    """Count the bytes of each field's rows before and after; with the first-order weights if absorbed.

    Args:
        checkpoint: Of the uncompressed model.
        known: Of the fields.
        plan: What was done.
    """
    config = load_config(checkpoint)
    entries = [entry for entry in plan.entries if entry.name == TABLE]
    counted = [TABLE]
    for entry in entries:
        counted += facts_of(type(entry.config)).counted_with(entry.config)
    before, after = _field_bytes(config, Plan(), counted), _field_bytes(config, plan, counted)
    found = []
    for field, rows in before.items():
        key = field_key(TABLE, field)
        kept = [facts_of(type(entry.config)).kept_share(key, entry.config, known) for entry in entries]
        shares = [share for share in kept if share is not None]
        found.append(
            {
                "field": field,
                "rows": rows.rows,
                "bytes_before": rows.bytes,
                "bytes_after": after[field].bytes,
                # Of a method that says nothing of the variance it is not known.
                **({"kept_energy": shares[0] if shares else 1.0} if shares or not entries else {}),
            }
        )
    return found


@dataclass(frozen=True)
class FieldRows:
    """How many rows a field has, and the bytes that are stored of it."""

    rows: int
    bytes: int


def _field_bytes(config: ModelConfig, plan: Plan, modules: Sequence[str]) -> dict[str, FieldRows]:
    """Count by field what some modules of a model store of it once a plan is applied."""
    with torch.device("meta"):
        model = restructure_(config.build(), plan)
    stored = {name: tensor.dtype for name, tensor in named_tensors(model).items()}
    stored |= stored_dtypes(model, plan)
    fields = [field for field in config.fields if field.kind == "categorical"]
    sizes = dict.fromkeys((field.name for field in fields), 0)
    for name in modules:
        for i, field in enumerate(fields):
            for tensor, numbers in model.get_submodule(name).field_numbers(i).items():  # type: ignore[operator]
                sizes[field.name] += numbers * stored[f"{name}.{tensor}"].itemsize
    return {field.name: FieldRows(field.cardinality, sizes[field.name]) for field in fields}


def data_facts(manifest: Manifest) -> dict[str, Any]:
    """Describe a dataset for a report."""
    facts = manifest.facts
    splits: dict[str, dict[str, Any]] = {}
    for name in manifest.splits:
        rows, positives = manifest.rows(name), manifest.positives(name)
        splits[name] = {"rows": rows}
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
    # The best AUC of rows with one label is as undefined as any.
    bayes = ("bayes_auc", "bayes_log_loss", "bayes_split")
    return data | {key: facts[key] for key in bayes if facts.get(key) is not None}


def _description(manifest: Manifest) -> dict[str, Any] | None:
    """Describe its fields; a dataset made by other tools may have no vocabularies, or others."""
    if not all(field.name in manifest.vocabulary for field in manifest.categorical):
        return None
    try:
        return description_json.to_json(Description.of(manifest))
    except DataError as error:
        console.warn(f"the report does not describe the data: {error}")
        return None


def timings(run: Run) -> list[dict[str, Any]]:
    """Read how long each stage of a run took."""
    return [
        {
            "stage": stage.name,
            "seconds": read_success(stage.path)["seconds"],
            "reused": stage.name in run.reused,
        }
        for stage in run.stages
    ]
