"""Whether a dataset directory is up to date, and whether it may be written at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from afm_dist import __version__, storage
from afm_dist.dataset.manifest import FILE_NAME, Manifest, RowOrder
from afm_dist.errors import DataError, OptionError
from data_prep.ownership import PAGE, RAW, RECORD, foreign_files, read_manifest, read_record
from data_prep.protocol import Protocol
from data_prep.sources import files
from data_prep.sources.files import InputFile
from data_prep.sources.source import Source

__all__ = [
    "PAGE",
    "ROW_ORDER",
    "check_output",
    "check_replaced",
    "check_unchanged",
    "make_plan",
    "unfinished",
    "why_prepare",
]

# A log that is made anew from its options whenever it is wanted.
SYNTHETIC = "synthetic"
# Of the training split. Datasets of earlier releases, whose order is the log's, are prepared again.
ROW_ORDER: RowOrder = "shuffled"


def make_plan(source: Source, protocol: Protocol) -> dict[str, Any]:
    """Everything the dataset depends on, cheap to compute: what decides whether to redo it."""
    return {
        "version": __version__,
        "row_order": ROW_ORDER,
        **source.identity(),
        **storage.plain(asdict(protocol)),
        "inputs": [asdict(file) for file in source.inputs],
    }


def why_prepare(output: str, plan: dict[str, Any]) -> str | None:
    """The reason to prepare, in words; None when the dataset is up to date."""
    if not storage.exists(storage.join(output, FILE_NAME)):
        return "new"
    try:
        before = storage.read_json(storage.join(output, RECORD), dict[str, Any])
        manifest = Manifest.load(output)
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
    for path in inputs:
        inside = path.removeprefix(output.rstrip("/") + "/")
        if inside != path and inside.partition("/")[0] != RAW:
            raise OptionError(f"--output {output}: holds the input {path}; name another folder")
    if foreign := foreign_files(output):
        raise OptionError(
            f"--output {output}: the folder holds other files ({', '.join(foreign[:3])}); name a new one, or "
            "move them away"
        )


def check_replaced(output: str, kind: str, inputs: Sequence[InputFile], *, overwrite: bool) -> None:
    """Refuse to replace a finished dataset by one of other inputs.

    Inputs are told apart by where they lie: of the same files, whatever they hold now and whatever the other
    options are, a dataset is made again. A synthetic log is a function of the options alone.

    Args:
        output: The dataset directory.
        kind: Of the raw log.
        inputs: Its files.
        overwrite: Whether that is what the user wants.

    Raises:
        OptionError: saying what the dataset was made of.
    """
    manifest = read_manifest(output)
    if manifest is None or overwrite:
        return
    record = read_record(output)
    if record is not None:
        made_of = record["source"]
        is_same = [file["path"] for file in record["inputs"]] == [file.path for file in inputs]
        names = [str(file["path"]) for file in record["inputs"]]
    else:
        made_of = manifest.facts.get("source")
        names = [str(file.get("name")) for file in manifest.sources]
        sizes = [(file.get("name"), file.get("bytes")) for file in manifest.sources]
        is_same = sizes == [(file.name, file.bytes) for file in inputs]
    if made_of == kind and (is_same or kind == SYNTHETIC):
        return
    rows = sum(shard.rows for shards in manifest.splits.values() for shard in shards)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    of = f"{made_of or 'an unknown source'} ({shown})" if shown else str(made_of or "unknown inputs")
    raise OptionError(
        f"--output {output}: holds a finished dataset of other inputs, {rows:,} rows of {of}; name another "
        "folder, or give --overwrite to replace it"
    )
