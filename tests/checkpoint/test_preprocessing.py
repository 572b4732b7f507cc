"""What travels with a checkpoint: whole, of this model, or refused by name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from afm_dist.models import build_model
from tests.small_dataset import FIELDS, write_dataset

SHAPE = {"embedding_dim": 4, "hidden": [8]}


def prepared(location: Path, *, seed: int = 0) -> Manifest:
    """A dataset that says how its fields were made."""
    transforms = {"categorical": "token", "numeric": "number"}
    fields = tuple(replace(f, column=f.name, transform=transforms[f.kind]) for f in FIELDS)
    written = write_dataset(location, fields=fields, splits={"train": (50,)}, seed=seed)
    manifest = replace(written, facts={"source": "tabular"})
    manifest.save()
    return manifest


def save_model(location: Path, manifest: Manifest, *, seed: int = 0) -> str:
    torch.manual_seed(seed)
    model = build_model("deepfm", manifest.fields, SHAPE)
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPE, fields=manifest.fields)
    save_pretrained(model, str(location), config)
    return str(location)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return prepared(tmp_path / "data")


@pytest.fixture
def checkpoint(manifest: Manifest, tmp_path: Path) -> str:
    location = save_model(tmp_path / "checkpoint", manifest)
    assert preprocessing.attach(manifest, location)
    return location


def test_preprocessing_travels_with_the_checkpoint(
    checkpoint: str, manifest: Manifest, tmp_path: Path
) -> None:
    shutil.move(checkpoint, tmp_path / "elsewhere")
    shutil.rmtree(manifest.location)

    found = preprocessing.load(str(tmp_path / "elsewhere"))

    assert found.fields == manifest.fields
    assert found.vocabulary == manifest.vocabulary
    for file in found.vocabulary.values():
        found.check(file)


def test_dataset_that_does_not_say_how_it_was_made_leaves_nothing(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", splits={"train": (50,)})
    checkpoint = save_model(tmp_path / "checkpoint", manifest)

    assert not preprocessing.attach(manifest, checkpoint)

    with pytest.raises(
        DataError, match=r"has no preprocessing/.* a stage's own .* name OUTPUT/checkpoint; .* --data"
    ):
        preprocessing.load(checkpoint)
    with pytest.raises(DataError, match="does not say what a raw row becomes"):
        preprocessing.load(checkpoint, manifest.location)


def test_older_checkpoint_takes_the_dataset_it_was_trained_on(manifest: Manifest, tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path / "checkpoint", manifest)

    assert preprocessing.load(checkpoint, manifest.location).location == manifest.location


def test_altered_vocabulary_is_not_shipped(manifest: Manifest, tmp_path: Path) -> None:
    path = Path(manifest.location, manifest.vocabulary["ad"].path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    checkpoint = save_model(tmp_path / "checkpoint", manifest)

    with pytest.raises(DataError, match=r"ad\.parquet: altered content"):
        preprocessing.attach(manifest, checkpoint)
    with pytest.raises(DataError, match="has no preprocessing"):
        preprocessing.load(checkpoint)


def test_damaged_model_is_refused_by_name(checkpoint: str) -> None:
    path = Path(checkpoint, "model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"model\.safetensors: not the file"):
        preprocessing.load(checkpoint)


def test_preprocessing_of_another_model_is_refused(
    checkpoint: str, manifest: Manifest, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", manifest, seed=1)
    shutil.copytree(Path(checkpoint, "preprocessing"), Path(other, "preprocessing"))

    with pytest.raises(DataError, match=r"other/model\.safetensors: not the file"):
        preprocessing.load(other)


def test_missing_tensors_are_named(checkpoint: str) -> None:
    Path(checkpoint, "model.safetensors").unlink()

    with pytest.raises(DataError, match=r"model\.safetensors: missing"):
        preprocessing.load(checkpoint)


def test_dataset_with_other_vocabularies_is_refused(checkpoint: str, tmp_path: Path) -> None:
    other = prepared(tmp_path / "other", seed=1)

    with pytest.raises(DataError, match=r"--data .*: the vocabulary of field 'site' is not the one"):
        preprocessing.load(checkpoint, other.location)


def test_dataset_of_another_schema_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path / "checkpoint", manifest)
    other = replace(manifest, location=str(tmp_path / "other"), fields=manifest.fields[::-1])
    other.save()

    with pytest.raises(DataError, match="trained on another schema"):
        preprocessing.load(checkpoint, other.location)
