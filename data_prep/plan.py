"""Whether a dataset directory is up to date, and whether it may be written at all."""

from __future__ import annotations

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
        "inputs": [asdict(files.describe(path)) for path in source.paths],
    }


def why_prepare(output: str, plan: dict[str, Any]) -> str | None:
    """The reason to prepare, in words; None when the dataset is up to date."""
    if not storage.exists(storage.join(output, FILE_NAME)):
        return "interrupted before, going on" if storage.exists(storage.join(output, FOLDER)) else "new"
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
        present = set(storage.list_names(storage.join(output, folder)))
        for file in promised:
            if file.path.rpartition("/")[2] not in present:
                return f"again: {file.path} is missing"
    return None


def check_output(output: str) -> None:
    """Refuse to write among files that are not a dataset's.

    Raises:
        OptionError: the folder holds something else.
    """
    foreign = [name for name in storage.list_names(output) if name not in OWN_NAMES]
    if foreign:
        raise OptionError(
            f"--output {output}: the folder holds other files ({', '.join(foreign[:3])}); name a new one"
        )
