"""A model as a file that runs without this library, checked before it appears."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from torch import nn

from afm_dist import preprocessing, storage
from afm_dist.checkpoint import ModelConfig
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError
from afm_dist.export import aoti, onnx_file, torch_export
from afm_dist.export.check import Parity, check
from afm_dist.export.formats import Format
from afm_dist.export.metadata import describe
from afm_dist.export.module import trace
from afm_dist.serving.prepare import prepare_for_inference
from afm_dist.serving.rows import Precision

FORMATS: Mapping[str, Format] = {"torch-export": torch_export, "aoti": aoti, "onnx": onnx_file}
SUFFIXES: Mapping[str, str] = {"torch-export": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
# The largest difference of a logit that is accepted, by the precision of the tables. In float32 it is
# what another order of the same sums makes; below, what rounding the tables may do to the model.
BOUNDS: Mapping[Precision, float] = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.05}
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
) -> Parity:
    """Write the form for inference of a model as a file of another format.

    The file appears only after it was loaded again and its logits compared with the model's.

    Args:
        model: One of this library's, compressed or not, in eval mode; is not changed.
        config: What it is.
        format: ``torch-export``, ``aoti`` or ``onnx``.
        location: The file.
        precision: Of the tables in the file; all else, and every computation, is float32.
        data: A dataset whose rows it is checked on, too.
        vocabulary: What is copied to the folder ``LOCATION.preprocessing``: what makes raw rows inputs.

    Returns:
        How far the file's logits are from the model's.

    Raises:
        OptionError: an unknown format, another ending of the file's name than the format's, something
            that the format needs is missing, a model in training mode or without a form for inference.
        ParityError: the file does not compute what the model does; it is not written.
        DataError: a shard or a vocabulary is missing, truncated or altered.
    """
    check_format(format, location)
    if model.training:
        raise OptionError("the model is in training mode; call model.eval() first")
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
        handler.write(trace(prepared, fields), describe(config, precision), path)
        run = handler.load(path)
        if precision != "float32":
            check(run, prepared, fields, bound=BOUNDS["float32"], data=data, name=location)
        bound, advice = BOUNDS[precision], "" if precision == "float32" else "; choose --precision float32"
        parity = check(run, model, fields, bound=bound, data=data, name=location, advice=advice)
        _commit(path, parent, vocabulary)
    return parity


def check_format(format: str, location: str) -> None:
    """Refuse what ``export`` cannot write, before anything is read.

    Raises:
        OptionError: an unknown format, or another ending of the file's name than the format's.
    """
    if format not in FORMATS:
        raise OptionError(f"--format {format}: unknown; choose from {', '.join(FORMATS)}")
    if not location.endswith(SUFFIXES[format]):
        raise OptionError(
            f"--output {location}: the name of a file of --format {format} ends in {SUFFIXES[format]}"
        )
    if storage.is_folder(location):
        raise OptionError(f"--output {location}: is a folder; name a file in it")


@contextmanager
def _folder_in(parent: str) -> Iterator[Path]:
    """A folder to write to, on the same disk, so that what is in it can be renamed."""
    place = None
    if storage.is_local(parent):
        place = storage.local_path(parent)
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", suffix=storage.TEMPORARY_SUFFIX, dir=place) as folder:
        yield Path(folder)


def _commit(path: Path, parent: str, vocabulary: Manifest | None) -> None:
    """Give a file its place, after what belongs to it."""
    tensors = path.with_name(path.name + onnx_file.TENSORS_SUFFIX)
    location, tensors_location, vocabulary_location = (
        storage.join(parent, name) for name in (path.name, tensors.name, path.name + PREPROCESSING_SUFFIX)
    )
    # Several files are not replaced in one act: until all are, there is none. Nor must what belonged to
    # an older file be taken for this one's.
    for each in (location, tensors_location, vocabulary_location):
        storage.remove(each)
    if vocabulary:
        preprocessing.copy(vocabulary, vocabulary_location)
    if tensors.exists():
        _move(tensors, tensors_location)
    _move(path, location)


def _move(path: Path, location: str) -> None:
    with storage.new_file(location) as target:
        shutil.move(path, target)
