"""Models into checkpoint directories, and out of them. Never a pickle.

``from_pretrained`` rebuilds the model from its architecture and hyper-parameters, gives it the
structure of its compression plan, and loads the tensors. Above 5 GB the tensors are split over
several files with an index, in the layout of the Hugging Face hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config, parse_config
from afm_dist.checkpoint.files import (
    CONFIG,
    INDEX,
    PLAN,
    TENSOR_FILE,
    TENSORS,
    checksums,
    tensor_files,
    vouch_for,
    warn_of_unchecked,
)
from afm_dist.compression.applied import applied_plan, check_applied
from afm_dist.compression.plan import Plan
from afm_dist.compression.rewrite import restructure_, stored_dtypes
from afm_dist.errors import AfmError, DataError, OptionError
from afm_dist.modules.tensors import load_tensors_, named_tensors

MAX_FILE_BYTES = 5 * 10**9


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
    """List the files of a checkpoint in their order; who writes the tensors is up to the caller.

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
        if name not in names and TENSOR_FILE.fullmatch(name):
            storage.remove(storage.join(location, name))
    content = storage.json_text(config.to_json()).encode()
    sums = {name: digests[storage.join(location, name)] for name in names}
    storage.Checksums(folder=location, sha256={CONFIG: storage.sha256(content), **sums}).save()
    storage.write_bytes(storage.join(location, CONFIG), content)


def save_plan(plan: Plan, location: str) -> None:
    """Write what was done to a model beside it, for review; to a checkpoint directory that is complete."""
    plan.save(storage.join(location, PLAN))
    vouch_for(location, PLAN)


def _refuse_foreign(location: str) -> None:
    """See that the directory holds a checkpoint of ours, or none; one that was overwritten by half is ours.

    Raises:
        OptionError: it holds another ``config.json``, of a run or of another library, or a damaged one.
    """
    path = storage.join(location, CONFIG)
    if not storage.exists(path):
        return
    try:
        parse_config(storage.read_json(path, dict[str, Any]), path)
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
        warn_of_unchecked(location)
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


def count_parameters(model: nn.Module) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
