"""What makes a raw row an input of a model, beside its checkpoint: schema, scalers and vocabularies.

``CHECKPOINT/preprocessing`` is a dataset directory without rows: ``manifest.json`` and
``vocabulary/<field>.parquet``. Its facts hold the checksums of the checkpoint's own files, so that neither
a damaged model nor the preprocessing of another one goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypedDict

from afm_dist import storage
from afm_dist.checkpoint.config import check_schema, load_config
from afm_dist.checkpoint.files import CONFIG, FIX, MODEL_FACT, PREPROCESSING, vouch_for
from afm_dist.dataset.manifest import FILE_NAME, Manifest, Shard
from afm_dist.errors import DataError

FOLDER = PREPROCESSING
OWN_MANIFEST = f"{FOLDER}/{FILE_NAME}"
# Of a dataset's facts, those that say how its raw rows were read.
KEPT_FACTS = ("source", "spellings", "synthetic", "threshold", "unknown_share")


class _Shipped(TypedDict):
    """The facts about the model that a preprocessing came with."""

    model: tuple[Shard, ...]


def attach(manifest: Manifest, checkpoint: str) -> bool:
    """Copy a dataset's preprocessing into a checkpoint directory, file by file; the manifest last.

    Args:
        manifest: The dataset that the model was trained on.
        checkpoint: The checkpoint directory, complete.

    Returns:
        Whether there is one: a dataset that was not made by ``data_prep`` does not say what became of
        a raw row.

    Raises:
        DataError: a vocabulary, or a file of the checkpoint, is missing, truncated or altered.
    """
    if not is_known(manifest):
        return False
    files = model_files(checkpoint)
    sums = storage.Checksums.load(checkpoint, again=FIX)
    if sums is not None:
        for file in files:
            sums.compare(file.path, file.sha256)
    copy(manifest, storage.join(checkpoint, FOLDER), {MODEL_FACT: [asdict(file) for file in files]})
    vouch_for(checkpoint, OWN_MANIFEST)
    return True


def copy(manifest: Manifest, target: str, facts: Mapping[str, Any] | None = None) -> None:
    """Write a dataset's preprocessing to a folder of its own, the manifest last.

    Args:
        manifest: The dataset.
        target: The folder; what it held is gone.
        facts: Further facts.

    Raises:
        DataError: a vocabulary is missing, truncated or altered.
    """
    storage.remove(target)
    copied = Manifest(
        location=target,
        label=manifest.label,
        fields=manifest.fields,
        splits={},
        vocabulary=manifest.vocabulary,
        preset=manifest.preset,
        seed=manifest.seed,
        facts={
            **{name: manifest.facts[name] for name in KEPT_FACTS if name in manifest.facts},
            **(facts or {}),
        },
    )
    for file in manifest.vocabulary.values():
        storage.copy_file(storage.join(manifest.location, file.path), storage.join(target, file.path))
        copied.check(file)
    copied.save()


def is_known(manifest: Manifest) -> bool:
    """Return whether a dataset says how its fields were made, and has the vocabularies for it."""
    return (
        "source" in manifest.facts
        and all(field.column and field.transform for field in manifest.fields)
        and all(field.name in manifest.vocabulary for field in manifest.categorical)
    )


def model_files(checkpoint: str) -> list[Shard]:
    """List the files of a checkpoint that make the model: name, bytes and SHA-256."""
    return [
        Shard(path=name, rows=0, bytes=size, sha256=storage.file_sha256(storage.join(checkpoint, name)))
        for name, size in storage.list_sizes(checkpoint).items()
        if name == CONFIG or name.startswith("model")
    ]


def load(checkpoint: str, data: str | None = None) -> Manifest:
    """Find what makes raw rows inputs of a model: in its checkpoint, or else in a dataset directory.

    Args:
        checkpoint: Checkpoint directory.
        data: For a checkpoint without preprocessing: the dataset that the model was trained on.

    Raises:
        DataError: there is none, a file of the model is not the one it was shipped with, or the
            schema or the vocabularies are not the model's.
    """
    location = storage.join(checkpoint, FOLDER)
    config = load_config(checkpoint)
    own = None
    if storage.exists(storage.join(location, FILE_NAME)):
        sums = storage.Checksums.load(checkpoint, again=FIX)
        if sums is not None and OWN_MANIFEST in sums.sha256:
            sums.check(OWN_MANIFEST)
        own = Manifest.load(location)
        _check_model(own, checkpoint)
    if own is None and data is None:
        raise DataError(
            f"{checkpoint}: has no {FOLDER}/, which says what a raw row becomes; a stage's own checkpoint "
            "has none: name OUTPUT/checkpoint; for one of an older release, or of data that jobs/prepare.py "
            "did not make, give the dataset that the model was trained on with --data"
        )
    if data is None:
        assert own is not None
        manifest = own
    else:
        manifest = Manifest.load(data)
        if own is not None:
            _check_same(manifest, own, checkpoint)
    if not is_known(manifest):
        raise DataError(
            f"{manifest.location}: does not say what a raw row becomes (source, columns, vocabularies); "
            "prepare the data with jobs/prepare.py"
        )
    check_schema(config, manifest, checkpoint=checkpoint)
    return manifest


def find(checkpoint: str, data: Manifest | None) -> Manifest | None:
    """Find what makes raw rows inputs of a model, if known: the checkpoint's own, or else a dataset's.

    Args:
        checkpoint: Checkpoint directory.
        data: A dataset of the model's schema.

    Raises:
        DataError: as of ``load``, where the checkpoint has any.
    """
    if storage.exists(storage.join(checkpoint, FOLDER, FILE_NAME)):
        return load(checkpoint)
    return data if data and is_known(data) else None


def _check_same(data: Manifest, own: Manifest, checkpoint: str) -> None:
    """See that a dataset's vocabularies are those that came with the model.

    Raises:
        DataError: naming the first that differs.
    """
    for name, file in own.vocabulary.items():
        theirs = data.vocabulary.get(name)
        if theirs is None or theirs.sha256 != file.sha256:
            raise DataError(
                f"--data {data.location}: the vocabulary of field {name!r} is not the one that came with "
                f"{checkpoint}; leave --data out"
            )


def _check_model(manifest: Manifest, checkpoint: str) -> None:
    """See that the model is the one that was shipped with its preprocessing.

    Raises:
        DataError: naming the file that is missing or another one.
    """
    path = storage.join(manifest.location, FILE_NAME)
    shipped = storage.as_typed(manifest.facts, _Shipped, source=path, fix="ship the model again")[MODEL_FACT]
    storage.check_inside(checkpoint, (file.path for file in shipped), source=path)
    there = {file.path: file for file in model_files(checkpoint)}
    for file in shipped:
        if file.path not in there:
            raise DataError(f"{checkpoint}/{file.path}: missing; the checkpoint is incomplete")
        if there[file.path] != file:
            raise DataError(
                f"{checkpoint}/{file.path}: not the file that {FOLDER}/ came with; it is damaged, or of "
                f"another model (then remove {manifest.location} and give --data)"
            )
