"""The files of a checkpoint directory: their names, their digests, and what is read of them.

Whoever reads a file here compares it with its digest, whatever it is read for.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Literal, TypedDict, TypeVar

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.runtime import console

CONFIG = "config.json"
TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PLAN = "plan.json"
# To compare files with their digests; one core does some 0.5 to 2 GB/s.
READING_THREADS = 8
T = TypeVar("T")

# What a raw row needs to become the model's input, of a checkpoint that ships.
PREPROCESSING = "preprocessing"
MODEL_FACT: Literal["model"] = "model"
FIX = (
    "restore it, or run the job again that wrote it; if it was changed on purpose, delete "
    f"{storage.SUMS} beside it"
)
TENSOR_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class _Index(TypedDict):
    """What an index holds: the file of each tensor."""

    weight_map: dict[str, str]


class _ShippedFile(TypedDict):
    """What is read of a file of the model, as the preprocessing has it."""

    path: str
    sha256: str


class _Facts(TypedDict):
    """What is read of the facts of a preprocessing; none of the model: it is a dataset's."""

    model: list[_ShippedFile]


class _Preprocessing(TypedDict):
    """What is read of the manifest of a preprocessing."""

    facts: _Facts


def vouch_for(location: str, path: str) -> None:
    """Add a file to the checksums of a checkpoint directory, as it is now."""
    if (sums := storage.Checksums.load(location)) is not None:
        sums.having(path).save()


def checksums(location: str) -> storage.Checksums | None:
    """Read what the files of a checkpoint directory should be; None where nobody recorded it.

    Older releases recorded it with the preprocessing alone.

    Raises:
        DataError: the record is damaged.
    """
    found = storage.Checksums.load(location, again=FIX)
    manifest = storage.join(location, PREPROCESSING, "manifest.json")
    if found is not None or not storage.exists(manifest):
        return found
    files = storage.read_json(manifest, _Preprocessing, fix="ship the model again")["facts"][MODEL_FACT]
    sums = {file["path"]: file["sha256"] for file in files}
    return storage.Checksums(folder=location, sha256=sums, again=FIX)


def check_files(location: str) -> None:
    """See that the files of a checkpoint directory are those that were written.

    Raises:
        DataError: names the first that is not.
    """
    sums = checksums(location)
    if sums is None:
        warn_of_unchecked(location)
        return
    sums = replace(sums, sha256={name: each for name, each in sums.sha256.items() if _is_part(name)})
    sums.check_all(threads=READING_THREADS)


@cache
def warn_of_unchecked(location: str) -> None:
    """Say once that the files of a checkpoint directory cannot be compared with digests."""
    console.warn(
        f"{location}: has no {storage.SUMS} (of an older release, or copied without it): whether its files "
        "are what was written cannot be checked"
    )


def tensor_files(location: str) -> list[str]:
    """List the locations of the files with the tensors of a checkpoint.

    Raises:
        DataError: one of them is missing, or the index is damaged.
    """
    index = storage.join(location, INDEX)
    names = _indexed_files(location) if storage.exists(index) else [TENSORS]
    paths = [storage.join(location, name) for name in names]
    for path in paths:
        if not storage.exists(path):
            raise DataError(f"{path}: missing; the checkpoint is incomplete")
    return paths


def read_json(location: str, name: str, kind: type[T]) -> T:
    """Read a JSON file of a checkpoint, compared with its digest."""
    sums, path = checksums(location), storage.join(location, name)
    if sums is None:
        return storage.read_json(path, kind)
    # Once, so that what is parsed is what was compared.
    return storage.parse_json(sums.read(name), kind, source=path)


def _indexed_files(location: str) -> list[str]:
    """List the files that the index names, all of them in its own directory.

    Raises:
        DataError: the index is damaged, or names files elsewhere.
    """
    index = storage.join(location, INDEX)
    files = set(read_json(location, INDEX, _Index)["weight_map"].values())
    storage.check_inside(location, files, source=index)
    if not files or not all(map(TENSOR_FILE.fullmatch, files)):
        raise DataError(f"{index}: damaged (its weight_map must name model-…-of-….safetensors files)")
    return sorted(files)


def size_on_disk(location: str) -> int:
    """Bytes of a checkpoint directory's files."""
    return sum(size for name, size in storage.list_sizes(location).items() if _is_part(name))


def content_fingerprint(location: str) -> str:
    """Tells a checkpoint directory's files from those of other contents."""
    names = [name for name in storage.list_names(location) if _is_part(name)]
    return storage.fingerprint({name: storage.file_sha256(storage.join(location, name)) for name in names})


def _is_part(name: str) -> bool:
    return name == CONFIG or name.startswith("model")
