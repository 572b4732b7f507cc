"""A model as a file that runs without this library, checked before it appears."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from torch import nn

from afm_dist import storage
from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.dataset.manifest import FILE_NAME, Manifest
from afm_dist.errors import AfmError, OptionError
from afm_dist.export import aoti, onnx_file, torch_export
from afm_dist.export.check import Parity, check
from afm_dist.export.formats import Format
from afm_dist.export.metadata import PRODUCER, describe
from afm_dist.export.module import trace
from afm_dist.runtime.sharing import model_digest
from afm_dist.serving.prepare import prepare_for_inference
from afm_dist.serving.rows import Precision

FORMATS: Mapping[str, Format] = {"torch-export": torch_export, "aoti": aoti, "onnx": onnx_file}
SUFFIXES: Mapping[str, str] = {"torch-export": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
# The largest difference of a logit that is accepted, by the precision of the tables. In float32 it is
# what another order of the same sums makes; below, what rounding the tables may do to the model.
BOUNDS: Mapping[Precision, float] = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.05}
_NO_REMEDY = (
    "; its form for inference adds up numbers in another order, which so large ones do not bear: serve the "
    "checkpoint with this library"
)
# How the formats hold their producer: an entry of ONNX's metadata_props, and JSON in an archive of torch.
_ONNX_PRODUCER = re.compile(rb"\x0a\x08producer\x12." + PRODUCER.encode(), re.DOTALL)
_JSON_PRODUCER = re.compile(rb'"producer":\s*"' + PRODUCER.encode())
_METADATA = re.compile(r"metadata\.json$")
# Bytes of what is searched for, at most.
_LONGEST = 64
# Of the folder with the vocabularies: the file's name with this behind.
PREPROCESSING_SUFFIX = f".{preprocessing.FOLDER}"


def export(
    model: nn.Module,
    config: ModelConfig,
    format: str,
    location: str,
    *,
    precision: Precision = "float32",
    data: Manifest | None = None,
    vocabulary: Manifest | None = None,
    overwrite: bool = True,
) -> Parity:
    """Write the form for inference of a model as a file of another format.

    The file appears only after it was loaded again and its logits compared, with those of the form for
    inference (they may differ by 1e-5, or by 1e-5 of the logit where that is more) and with the model's (by
    ``BOUNDS[precision]``, or by 1e-5 of the largest logit).

    Args:
        model: One of this library's, compressed or not, in eval mode; is not changed.
        config: What it is.
        format: ``torch-export``, ``aoti`` or ``onnx``.
        location: The file.
        precision: Of the tables in the file; all else, and every computation, is float32.
        data: A dataset whose rows it is checked on, too.
        vocabulary: What is copied to the folder ``LOCATION.preprocessing``: what makes raw rows inputs.
        overwrite: Whether a file of another model may be replaced; the job asks for that.

    Returns:
        How far the file's logits are from the model's.

    Raises:
        OptionError: an unknown format, another ending of the file's name than the format's, something
            that the format needs is missing, something at the location that this function did not
            write, a model in training mode or without a form for inference.
        ParityError: the file does not compute what the model does; it is not written.
        DataError: a shard or a vocabulary is missing, truncated or altered.
    """
    check_format(format, location)
    if model.training:
        raise OptionError("the model is in training mode; call model.eval() first")
    digest = model_digest(model)
    if not overwrite:
        _refuse_other(location, digest)
    handler = FORMATS[format]
    handler.prepare()
    if vocabulary:
        for file in vocabulary.vocabulary.values():
            vocabulary.check(file)
    parent, _, name = storage.absolute(location).rpartition("/")
    if storage.is_uri(location):
        name = unquote(name)
    fields = config.fields
    prepared = prepare_for_inference(model, precision=precision)
    with _folder_in(parent) as folder, warnings.catch_warnings():
        # Torch's own, of what it calls itself.
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg|torch")
        path = folder / name
        handler.write(trace(prepared, fields), describe(config, precision, digest), path)
        run = handler.load(path)
        # First what the format does, then what form and precision do.
        compare = partial(check, run, fields=fields, data=data, name=location)
        compare(prepared, bound=BOUNDS["float32"], advice="; try another --format")
        advice = _NO_REMEDY if precision == "float32" else "; choose --precision float32"
        parity = compare(model, bound=BOUNDS[precision], of_largest=True, advice=advice)
        _commit(path, parent, vocabulary)
    return parity


def written_bytes(location: str) -> int:
    """Of a file with its tensors, wherever these are; its vocabularies are not counted."""
    tensors = location + onnx_file.TENSORS_SUFFIX
    return storage.size(location) + (storage.size(tensors) if storage.exists(tensors) else 0)


def check_format(format: str, location: str) -> None:
    """Refuse what ``export`` cannot write, before anything is read.

    Raises:
        OptionError: an unknown format, another ending of the file's name than the format's, or something
            at the location that ``export`` did not write.
    """
    if format not in FORMATS:
        raise OptionError(f"--format {format}: unknown; choose from {', '.join(FORMATS)}")
    if not location.endswith(SUFFIXES[format]):
        raise OptionError(
            f"--output {location}: the name of a file of --format {format} ends in {SUFFIXES[format]}"
        )
    if storage.is_folder(location):
        raise OptionError(f"--output {location}: is a folder; name a file in it")
    _refuse_foreign(location)


def _refuse_foreign(location: str) -> None:
    """See that nothing is replaced which others wrote.

    Raises:
        OptionError: names it.
    """
    tensors, vocabulary = location + onnx_file.TENSORS_SUFFIX, location + PREPROCESSING_SUFFIX
    there = storage.exists(location)
    foreign = [location] if there and not _names_us(location) else []
    # Tensors have no mark: those of a file of ours are ours.
    foreign += [tensors] if storage.exists(tensors) and not there else []
    foreign += [vocabulary] if storage.exists(vocabulary) and not _is_preprocessing(vocabulary) else []
    for each in foreign:
        raise OptionError(
            f"--output {location}: {each} is there and was not written by this job; remove it, or choose "
            "another name"
        )


def _refuse_other(location: str, digest: str) -> None:
    """See that the file that is there is of the same model.

    Raises:
        OptionError: it is of another one, or does not say of which.
    """
    if storage.exists(location) and not _holds(location, re.compile(digest.encode())):
        raise OptionError(
            f"--output {location}: is there, and of another model (or of another release of this library); "
            "choose another name, or give --overwrite to replace it"
        )


def _names_us(location: str) -> bool:
    """Return whether a file names this library as its producer, where its format has the producer."""
    with storage.open_read(location) as file:
        if not zipfile.is_zipfile(file):
            return _holds(location, _ONNX_PRODUCER)
        try:
            with zipfile.ZipFile(file) as archive:
                texts = [each for each in archive.infolist() if _METADATA.search(each.filename)]
                return any(_JSON_PRODUCER.search(archive.read(each)) for each in texts)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
            return False


def _holds(location: str, pattern: re.Pattern[bytes]) -> bool:
    """Return whether a short pattern is found in a file; no format compresses its texts."""
    tail = b""
    with storage.open_read(location) as file:
        while block := file.read(1 << 24):
            if pattern.search(tail + block):
                return True
            tail = block[-_LONGEST:]
    return False


def _is_preprocessing(location: str) -> bool:
    """Return whether a folder holds vocabularies and no rows, and nothing else."""
    files = set(storage.list_files(location))
    try:
        manifest = Manifest.load(location)
    except AfmError:
        return storage.is_folder(location) and not files
    return not manifest.splits and files <= {FILE_NAME, *(file.path for file in manifest.files)}


@contextmanager
def _folder_in(parent: str) -> Iterator[Path]:
    """Make a folder to write to, on the same disk, so that what is in it can be renamed."""
    place = None
    prefix = f".export-{socket.gethostname()}-"
    if storage.is_local(parent):
        place = storage.local_path(parent)
        place.mkdir(parents=True, exist_ok=True)
        _remove_left_over(place, prefix)
    with tempfile.TemporaryDirectory(
        prefix=f"{prefix}{os.getpid()}-", suffix=storage.TEMPORARY_SUFFIX, dir=place
    ) as folder:
        yield Path(folder)


def _remove_left_over(place: Path, prefix: str) -> None:
    """Delete the folders of processes of this machine that are no more; they were killed."""
    for folder in place.glob(f"{prefix}*{storage.TEMPORARY_SUFFIX}"):
        number = folder.name.removeprefix(prefix).partition("-")[0]
        if number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _commit(path: Path, parent: str, vocabulary: Manifest | None) -> None:
    """Give a file its place, after what belongs to it."""
    tensors, folder = (
        path.with_name(path.name + end) for end in (onnx_file.TENSORS_SUFFIX, PREPROCESSING_SUFFIX)
    )
    location, tensors_location, vocabulary_location = (
        storage.join(parent, each.name) for each in (path, tensors, folder)
    )
    if vocabulary:
        preprocessing.copy(vocabulary, str(folder))
    # All is here now: what follows removes and, on a disk, renames. Several files are not replaced in one
    # act: until all are, there is none. Nor must what belonged to an older file be taken for this one's.
    for each in (location, tensors_location, vocabulary_location):
        storage.remove(each)
    if vocabulary and storage.is_local(parent):
        folder.replace(storage.local_path(vocabulary_location))
    elif vocabulary:
        preprocessing.copy(Manifest.load(str(folder)), vocabulary_location)
    if tensors.exists():
        _move(tensors, tensors_location)
    _move(path, location)


def _move(path: Path, location: str) -> None:
    with storage.new_file(location) as target:
        shutil.move(path, target)
