"""Whether a dataset directory is up to date, and whether it may be written at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from afm_dist import __version__, storage
from afm_dist.dataset.manifest import FILE_NAME, Manifest
from afm_dist.errors import DataError, OptionError
from data_prep.protocol import Protocol
from data_prep.sources import files
from data_prep.sources.source import Source
from data_prep.split import SPLITS
from data_prep.work import FOLDER

RECORD = "prepare.json"
REJECTED = "rejected"
RAW = "raw"
PAGE = "describe.html"
OWN_NAMES = (FILE_NAME, RECORD, PAGE, REJECTED, RAW, FOLDER, "vocabulary", *SPLITS)


def make_plan(source: Source, protocol: Protocol) -> dict[str, Any]:
    """Everything the dataset depends on, cheap to compute: what decides whether to redo it."""
    return {
        "version": __version__,
        **source.identity(),
        **storage.plain(asdict(protocol)),
        "inputs": [asdict(file) for file in source.inputs],
    }


def why_prepare(output: str, plan: dict[str, Any]) -> str | None:
    """The reason to prepare, in words; None when the dataset is up to date."""
    if not storage.exists(storage.join(output, FILE_NAME)):
        return "new"
    try:
        before, manifest = storage.read_json(storage.join(output, RECORD)), Manifest.load(output)
    except DataError as error:
        return f"again: {error}"
    changes = [
        "the input changed" if key == "inputs" else f"{key} {before.get(key)} -> {plan.get(key)}"
        for key in sorted({*before, *plan})
        if before.get(key) != plan.get(key)
    ]
    if changes:
        return "again: " + "; ".join(changes)
    files_of = {"vocabulary": tuple(manifest.vocabulary.values()), **manifest.splits}
    for folder, promised in files_of.items():
        present = storage.list_sizes(storage.join(output, folder))
        for file in promised:
            size = present.get(file.path.rpartition("/")[2])
            if size != file.bytes:
                return f"again: {file.path} {'is missing' if size is None else 'is not what was written'}"
    return None


def unfinished(plan: dict[str, Any]) -> dict[str, Any]:
    """What receipts of an interrupted preparation depend on: not on how many bad rows are tolerated."""
    return {key: value for key, value in plan.items() if key != "max_bad_rows"}


def check_unchanged(source: Source, plan: dict[str, Any]) -> None:
    """Refuse to finish when an input was written to meanwhile.

    Raises:
        DataError: naming the input.
    """
    for path, before in zip(source.paths, plan["inputs"], strict=True):
        if asdict(files.describe(path)) != before:
            raise DataError(f"{path}: the file changed while it was being read; run the same command again")


def check_output(output: str, inputs: Sequence[str] = ()) -> None:
    """Refuse to write among files that are not a dataset's, or over the inputs.

    Raises:
        OptionError: the folder holds something else, or inputs lie where files will be replaced.
    """
    if storage.is_local(output) and storage.local_path(output).is_file():
        raise OptionError(f"--output {output}: this is a file; name a folder")
    present = storage.list_names(output)
    ours = OWN_NAMES if {FILE_NAME, RECORD, FOLDER} & set(present) else (RAW,)
    foreign = [name for name in present if name not in ours]
    if foreign:
        raise OptionError(
            f"--output {output}: the folder holds other files ({', '.join(foreign[:3])}); name a new one"
        )
    for path in inputs:
        inside = path.removeprefix(output.rstrip("/") + "/")
        if inside != path and inside.partition("/")[0] != RAW:
            raise OptionError(f"--output {output}: holds the input {path}; name another folder")
