"""Checkpoint directories: ``config.json``, ``model.safetensors`` and ``SHA256SUMS``. Never a pickle.

``from_pretrained`` rebuilds the model from its architecture and hyper-parameters, gives it the
structure of its compression plan, and loads the tensors. Above 5 GB the tensors are split over
several files with an index, in the layout of the Hugging Face hub. Whoever reads a file here compares
it with its digest, whatever it is read for.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Literal, TypedDict, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from afm_dist import console, storage
from afm_dist.compression.applied import applied_plan, check_applied
from afm_dist.compression.plan import Plan
from afm_dist.compression.rewrite import restructure_, stored_dtypes
from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.errors import AfmError, DataError, OptionError
from afm_dist.models import build_model
from afm_dist.tensors import load_tensors_, named_tensors

FORMAT_VERSION = 1
CONFIG = "config.json"
TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PLAN = "plan.json"
MAX_FILE_BYTES = 5 * 10**9
# To compare files with their digests; one core does some 0.5 to 2 GB/s.
READING_THREADS = 8
T = TypeVar("T")

# What a raw row needs to become the model's input, of a checkpoint that ships.
PREPROCESSING = "preprocessing"
MODEL_FACT: Literal["model"] = "model"
AGAIN = (
    "restore it, or run the job again that wrote it; if it was changed on purpose, delete "
    f"{storage.SUMS} beside it"
)
_TENSOR_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class _Config(TypedDict):
    """What ``config.json`` holds."""

    format_version: int
    architecture: str | None
    hyper_parameters: dict[str, Any]
    fields: tuple[Field, ...]
    compression: dict[str, Any]


class _Index(TypedDict):
    """What an index holds: the file of each tensor."""

    weight_map: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything about a model but its tensors.

    Attributes:
        architecture: Registered name; None for a model of the user's own.
        hyper_parameters: Keyword arguments of the architecture.
        fields: Schema the model was trained on.
        plan: What was compressed, in order.
    """

    architecture: str | None = None
    hyper_parameters: Mapping[str, Any]
    fields: tuple[Field, ...] = ()
    plan: Plan = field(default_factory=Plan)

    def build(self) -> nn.Module:
        """The uncompressed architecture, freshly initialised.

        Raises:
            DataError: a model of the user's own, which only its owner can build.
        """
        if self.architecture is None:
            raise DataError(
                "a checkpoint of a model of your own: build the model and pass it as "
                "from_pretrained(location, model=model)"
            )
        return build_model(self.architecture, self.fields, self.hyper_parameters)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "format_version": FORMAT_VERSION,
            "architecture": self.architecture,
            "hyper_parameters": dict(self.hyper_parameters),
            "fields": [asdict(item) for item in self.fields],
            "compression": self.plan.to_json(),
        }


def save_pretrained(
    model: nn.Module,
    location: str,
    config: ModelConfig | None = None,
    *,
    plan: Plan | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a checkpoint directory; ``config.json`` last, so that a directory with it is whole.

    The digests of its files lie in ``SHA256SUMS``, in the format of ``sha256sum``.

    Args:
        model: The model.
        location: The directory.
        config: What it is; for a model of your own leave it out.
        plan: What was done to a model of your own (instead of ``config``).
        max_file_bytes: Where the tensors are split over several files.

    Raises:
        OptionError: tensors that share memory without being one parameter, or a plan that is not the model's.

    Notes:
        Rows that the plan rounds to bfloat16 are stored so; in the model they are not changed.
    """
    if config is None:
        config = ModelConfig(hyper_parameters={}, plan=applied_plan(model) if plan is None else plan)
    check_applied(model, config.plan)
    short = stored_dtypes(model, config.plan)
    tensors = {
        name: tensor.to("cpu", short.get(name, tensor.dtype)).contiguous()
        for name, tensor in named_tensors(model).items()
    }
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}

    def write(path: str, names: Sequence[str]) -> None:
        _save_tensors(path, {name: tensors[name] for name in names})

    write_checkpoint(location, config, sizes, write, max_file_bytes=max_file_bytes)


def write_checkpoint(
    location: str,
    config: ModelConfig,
    sizes: Mapping[str, int],
    write: Callable[[str, Sequence[str]], None],
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """The files of a checkpoint in their order; who writes the tensors is up to the caller.

    Args:
        location: The directory.
        config: What the model is.
        sizes: Bytes of each tensor, by name.
        write: Called with the location of a safetensors file and the names of its tensors.
        max_file_bytes: Where the tensors are split over several files.

    Raises:
        OptionError: the directory holds a ``config.json`` that is no checkpoint's.
    """
    _refuse_foreign(location)
    files = _split(sizes, max_file_bytes)
    index_path = storage.join(location, INDEX)
    if len(files) > 1 or storage.exists(index_path):
        # Several files are not replaced in one act: until they all are, this is no checkpoint.
        storage.remove(storage.join(location, CONFIG))
    with storage.recording_digests() as digests:
        if len(files) == 1:
            names = [TENSORS]
            write(storage.join(location, TENSORS), files[0])
        else:
            names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
            weight_map = {}
            for name, part in zip(names, files, strict=True):
                write(storage.join(location, name), part)
                weight_map.update(dict.fromkeys(part, name))
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            storage.write_json(index_path, index)
            names.append(INDEX)
    for name in storage.list_names(location):
        if name not in names and _TENSOR_FILE.fullmatch(name):
            storage.remove(storage.join(location, name))
    content = storage.json_text(config.to_json()).encode()
    sums = {name: digests[storage.join(location, name)] for name in names}
    storage.Checksums(folder=location, sha256={CONFIG: storage.sha256(content), **sums}).save()
    storage.write_bytes(storage.join(location, CONFIG), content)


def save_plan(plan: Plan, location: str) -> None:
    """Write what was done to a model beside it, for review; to a checkpoint directory that is complete."""
    plan.save(storage.join(location, PLAN))
    vouch_for(location, PLAN)


def vouch_for(location: str, path: str) -> None:
    """Add a file to the checksums of a checkpoint directory, as it is now."""
    if (sums := storage.Checksums.load(location)) is not None:
        sums.having(path).save()


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


def checksums(location: str) -> storage.Checksums | None:
    """What the files of a checkpoint directory should be; None where nobody recorded it.

    Older releases recorded it with the preprocessing alone.

    Raises:
        DataError: the record is damaged.
    """
    found = storage.Checksums.load(location, again=AGAIN)
    manifest = storage.join(location, PREPROCESSING, "manifest.json")
    if found is not None or not storage.exists(manifest):
        return found
    files = storage.read_json(manifest, _Preprocessing, fix="ship the model again")["facts"][MODEL_FACT]
    sums = {file["path"]: file["sha256"] for file in files}
    return storage.Checksums(folder=location, sha256=sums, again=AGAIN)


def check_files(location: str) -> None:
    """See that the files of a checkpoint directory are those that were written.

    Raises:
        DataError: names the first that is not.
    """
    sums = checksums(location)
    if sums is None:
        _warn_of_unchecked(location)
        return
    sums = replace(sums, sha256={name: each for name, each in sums.sha256.items() if _is_part(name)})
    sums.check_all(threads=READING_THREADS)


@cache
def _warn_of_unchecked(location: str) -> None:
    console.warn(
        f"{location}: has no {storage.SUMS} (of an older release, or copied without it): whether its files "
        "are what was written cannot be checked"
    )


def _refuse_foreign(location: str) -> None:
    """See that the directory holds a checkpoint of ours, or none; one that was overwritten by half is ours.

    Raises:
        OptionError: it holds another ``config.json``, of a run or of another library, or a damaged one.
    """
    path = storage.join(location, CONFIG)
    if not storage.exists(path):
        return
    try:
        _parsed(storage.read_json(path, dict[str, Any]), path)
    except DataError as error:
        raise OptionError(
            f"{location}: holds something else than a checkpoint of this library, which would be replaced "
            f"({error}); name another folder"
        ) from error


def _save_tensors(location: str, tensors: Mapping[str, Tensor]) -> None:
    """By way of a file: as bytes, tensors would be in memory twice."""
    with storage.new_file(location) as path:
        safetensors.torch.save_file(dict(tensors), path)


def _split(sizes: Mapping[str, int], max_file_bytes: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if files[-1] and used + size > max_file_bytes:
            files.append([])
            used = 0
        files[-1].append(name)
        used += size
    return files


def load_config(location: str) -> ModelConfig:
    """What a checkpoint directory holds.

    Raises:
        DataError: not a checkpoint, of an unknown version or content, or altered.
    """
    path = storage.join(location, CONFIG)
    if not storage.exists(path):
        raise DataError(f"{location}: not a checkpoint directory (no {CONFIG})")
    return _parsed(_read_json(location, CONFIG, dict[str, Any]), path)


def _parsed(content: Mapping[str, Any], path: str) -> ModelConfig:
    """What the content of a ``config.json`` says.

    Raises:
        DataError: it is of an unknown version, or not understood.
    """
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {reprlib.repr(version)} is unknown (this release reads {FORMAT_VERSION})"
        )
    found = storage.as_typed(content, _Config, source=path)
    return ModelConfig(
        architecture=found["architecture"],
        hyper_parameters=found["hyper_parameters"],
        fields=found["fields"],
        plan=Plan.from_json(found["compression"], source=path),
    )


def from_pretrained(location: str, *, model: nn.Module | None = None) -> nn.Module:
    """Rebuild a model, compressed structure included, in eval mode.

    Args:
        location: Checkpoint directory.
        model: For a model of your own: the same model, uncompressed; changed in place. What it has
            tied or frozen stays so.

    Raises:
        DataError: not a checkpoint, damaged, altered, or tensors that do not fit the model.

    Notes:
        Every file is compared with its digest, which takes a second for some 0.5 to 2 GB. Of a checkpoint
        without digests (of an older release) a warning says that this was not done.
    """
    config = load_config(location)
    try:
        if model is None:
            with torch.device("meta"):
                model = config.build()
                restructure_(model, config.plan)
        else:
            restructure_(model, config.plan)
    except AfmError as error:
        raise DataError(f"{location}: {error}") from error
    tensors = _load_tensors(location)
    own = model.state_dict()
    for name in stored_dtypes(model, config.plan).keys() & tensors.keys():
        tensors[name] = tensors[name].to(own[name].dtype)
    try:
        fill_(model, tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{location}: the tensors do not fit the model ({detail})") from error
    return model.eval()


def fill_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the structure of a model its tensors, and recompute the buffers that are not stored.

    Raises:
        RuntimeError: names the tensors that are missing, too many, or of another shape.
    """
    load_tensors_(model, tensors)
    _rebuild_buffers_(model)


def _rebuild_buffers_(model: nn.Module) -> None:
    """Recompute the buffers that are not stored: the row offsets of fused tables."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                rebuild = getattr(module, f"rebuild_{name}")
                setattr(module, name, rebuild())


def _load_tensors(location: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    sums = checksums(location)
    if sums is None:
        _warn_of_unchecked(location)
    for path in tensor_files(location):
        with storage.local_copy(path) as file:
            if sums is not None:
                sums.check(storage.relative(path, location), copy=file)
            try:
                # The file stays mapped, also when its name is gone.
                tensors |= safetensors.torch.load_file(file)
            except (SafetensorError, json.JSONDecodeError, ValueError) as error:
                raise DataError(f"{path}: damaged ({error})") from error
    return tensors


def tensor_files(location: str) -> list[str]:
    """The locations of the files with the tensors of a checkpoint.

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


def _read_json(location: str, name: str, kind: type[T]) -> T:
    """A JSON file of a checkpoint, compared with its digest."""
    sums, path = checksums(location), storage.join(location, name)
    if sums is None:
        return storage.read_json(path, kind)
    # Once, so that what is parsed is what was compared.
    return storage.parse_json(sums.read(name), kind, source=path)


def _indexed_files(location: str) -> list[str]:
    """The files that the index names, all of them in its own directory.

    Raises:
        DataError: the index is damaged, or names files elsewhere.
    """
    index = storage.join(location, INDEX)
    files = set(_read_json(location, INDEX, _Index)["weight_map"].values())
    storage.check_inside(location, files, source=index)
    if not files or not all(map(_TENSOR_FILE.fullmatch, files)):
        raise DataError(f"{index}: damaged (its weight_map must name model-…-of-….safetensors files)")
    return sorted(files)


def check_schema(config: ModelConfig, manifest: Manifest, *, checkpoint: str) -> None:
    """Refuse a model for data of another schema.

    Raises:
        DataError: names the first field that differs, and how.
    """
    ours: Sequence[Field] = config.fields
    theirs: Sequence[Field] = manifest.fields
    if ours == theirs:
        return
    where = f"{checkpoint} was trained on another schema than {manifest.location}"
    ours_by_name = {item.name: item for item in ours}
    for other in theirs:
        mine = ours_by_name.get(other.name)
        if mine is None:
            raise DataError(f"{where}: the model does not know field {other.name!r}; train on this data")
        for key in ("kind", "cardinality", "mean", "deviation", "column", "transform"):
            if getattr(mine, key) != getattr(other, key):
                raise DataError(
                    f"{where}: field {other.name!r} has {key} {getattr(mine, key)} in the model and "
                    f"{getattr(other, key)} in the data; use the data it was trained on"
                )
    missing = sorted(set(ours_by_name) - {item.name for item in theirs})
    raise DataError(f"{where}: the data lacks {', '.join(missing) or 'the same order of fields'}")


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_on_disk(location: str) -> int:
    """Bytes of a checkpoint directory's files."""
    return sum(size for name, size in storage.list_sizes(location).items() if _is_part(name))


def content_fingerprint(location: str) -> str:
    """Tells a checkpoint directory's files from those of other contents."""
    names = [name for name in storage.list_names(location) if _is_part(name)]
    return storage.fingerprint({name: storage.file_sha256(storage.join(location, name)) for name in names})


def _is_part(name: str) -> bool:
    return name == CONFIG or name.startswith("model")
