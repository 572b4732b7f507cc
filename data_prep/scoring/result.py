"""The parts of the scores to one Parquet file, in order and in bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.errors import DataError, OptionError, StorageError
from data_prep.rejected import foreign_rejected
from data_prep.scoring.block import LOGIT, ROW, SCORE
from data_prep.sources.files import InputFile
from data_prep.spool import open_arrow
from data_prep.work import DRIVER, PLAN, is_work_directory

ROW_GROUP_ROWS = 1 << 17
# In the file's metadata: which model these scores are of.
KEY = b"afm-dist"
OTHER_SUFFIXES = (
    ".csv",
    ".tsv",
    ".txt",
    ".json",
    ".jsonl",
    ".arrow",
    ".feather",
    ".gz",
    ".zst",
    ".zip",
    ".xlsx",
)
OF_WORK = re.compile(rf"{re.escape(PLAN)}|{DRIVER}|(scan|parts|lookups|vocabulary|score)-[0-9a-f]+")
OF_REJECTED = re.compile(r"part-.*\.jsonl")


class ScoredFile(TypedDict):
    """A file that was scored."""

    name: str
    bytes: int


class About(TypedDict):
    """What scores are of, in the metadata of their file."""

    model: str
    """Its digest."""
    inputs: NotRequired[list[ScoredFile]]
    """Not of an older release."""


def about_scores(model: str, inputs: Sequence[InputFile]) -> About:
    """What scores are of: the digest of the model, name and size of each file."""
    return About(model=model, inputs=[ScoredFile(name=file.name, bytes=file.bytes) for file in inputs])


def check_result(output: str, inputs: Sequence[InputFile], model: str | None, *, overwrite: bool) -> None:
    """Refuse to write over anything but scores of this job, of the same model and the same rows.

    Args:
        output: The file to be.
        inputs: The files that are scored.
        model: Digest of the model; None: not known yet, so that it is not compared.
        overwrite: Whether scores of others may be replaced.

    Raises:
        OptionError: the output is an input, a folder, a file of somebody else's, holds scores of another
            model or of other rows, or is named as if it were not Parquet.
    """
    if output in [file.path for file in inputs]:
        raise OptionError(f"--output {output}: this is an input; name another file")
    if storage.is_folder(output):
        raise OptionError(f"--output {output}: a folder; name a file, such as scores.parquet")
    stem, dot, suffix = output.rpartition("/")[2].rpartition(".")
    if stem and f"{dot}{suffix}".lower() in OTHER_SUFFIXES:
        raise OptionError(
            f"--output {output}: the scores are written as Parquet; name the file {stem}.parquet, and "
            "convert it afterwards if need be"
        )
    if not storage.exists(output):
        return
    before = _about(output)
    if before is None:
        raise OptionError(f"--output {output}: holds something else than scores; name another file")
    wanted = about_scores(model or before["model"], inputs)
    if overwrite or before == wanted:
        return
    # Scores of an older release say nothing of their rows.
    rows = ", ".join(file["name"] for file in before.get("inputs", [])) or "an unknown input"
    what = f"other rows ({rows})" if before.get("inputs") != wanted["inputs"] else f"another model ({rows})"
    raise OptionError(
        f"--output {output}: holds scores of {what}; name another file, or give --overwrite to replace them"
    )


def _about(location: str) -> About | None:
    """What scores are of, as their file says; None for a file that holds none of ours."""
    try:
        with storage.open_read(location) as raw, pq.ParquetFile(raw) as file:
            schema = file.schema_arrow
        about = storage.parse_json((schema.metadata or {}).get(KEY, b""), About, source=location)
    except StorageError:
        raise
    except (pa.ArrowException, OSError, DataError):
        return None
    return about if schema.names[:3] == [ROW, SCORE, LOGIT] else None


def check_folders(output: str) -> None:
    """Refuse to delete what lies beside the output and is not this job's.

    Raises:
        OptionError: ``OUTPUT.work`` or ``OUTPUT.rejected`` is a file, or holds what is not ours.
    """
    work, rejected = f"{output}.work", f"{output}.rejected"
    for folder, foreign in ((work, _foreign_work(work)), (rejected, foreign_rejected(rejected))):
        if foreign or (storage.exists(folder) and not storage.is_folder(folder)):
            raise OptionError(
                f"--output {output}: {folder} is in the way and would be deleted, but holds what is not of "
                f"this job ({', '.join(foreign[:3]) or 'it is a file'}); move it, or name another output"
            )


def _foreign_work(folder: str) -> list[str]:
    """Names of what lies in a folder and is not of an interrupted job."""
    names = [name for name in storage.list_names(folder) if not storage.is_temporary(name)]
    return [name for name in names if not OF_WORK.fullmatch(name)] if is_work_directory(folder) else names


def write_result(
    parts: Sequence[str], schema: pa.Schema, output: str, model: Mapping[str, Any], rows: int
) -> None:
    """Write the scores, with the number of each row over the whole input.

    Args:
        parts: Arrow files, in order.
        schema: Of the parts.
        output: The file, which appears whole or not at all.
        model: Which model they are of, for the metadata; plain values.
        rows: Of all parts, as their receipts say.

    Raises:
        DataError: the parts hold another number of rows; nothing is written.
    """
    whole = pa.schema(
        [pa.field(ROW, pa.int64(), nullable=False), *schema], metadata={KEY: json.dumps(dict(model))}
    )
    carried = schema.names[2:]
    written = 0
    with (
        storage.open_write(output) as sink,
        pq.ParquetWriter(sink, whole, compression="zstd", use_dictionary=carried or False) as writer,
    ):
        for table in _row_groups(_batches(parts), schema):
            numbers = pa.array(np.arange(written, written + table.num_rows))
            writer.write_table(
                pa.Table.from_arrays([numbers, *table.columns], schema=whole), row_group_size=ROW_GROUP_ROWS
            )
            written += table.num_rows
        if written != rows:
            raise DataError(
                f"{output}.work: its parts hold {written:,} rows where their receipts say {rows:,}; they "
                "were altered, or a disk is faulty: delete the folder and run the same command again"
            )


def _batches(parts: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        with open_arrow(part) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of equal size but the last."""
    waiting = schema.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        full = waiting.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
        if full:
            yield waiting.slice(0, full)
            # A copy: a slice would keep the part's file open.
            waiting = pa.concat_tables([waiting.slice(full)]).combine_chunks()
    if waiting.num_rows:
        yield waiting
