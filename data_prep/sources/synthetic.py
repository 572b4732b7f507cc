"""Synthetic click logs in the raw format of a well-known one, with the true probabilities beside them.

A log is a folder of ``part-NNNNN`` files of 262,144 rows, and for each one ``truth-NNNNN.parquet`` and, in
``digests-NNNNN.json``, the digests of the two: what was altered is written again. A row depends on (shape,
seed, row number) alone: a log is the beginning of any longer one of its seed.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, get_args

import polars as pl
import pyarrow.parquet as pq
import ray

from afm_dist import storage
from afm_dist.errors import DataError, OptionError
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import cluster, console
from afm_dist.runtime.tasks import run_tasks
from data_prep.sources.planted import BLOCK_ROWS, PART_ROWS, PlantedModel
from data_prep.sources.planted_shapes import SHAPES, ShapeName
from data_prep.sources.planted_text import FORMATS, LineWriter

GENERATOR_VERSION = 2
RECORD = "log.json"
READING_THREADS = 8
FIX = "it is written again"


@dataclass(frozen=True, kw_only=True)
class SyntheticLog:
    """A written log.

    Attributes:
        paths: Its files in order, in the raw format of the shape.
        truths: For each a Parquet file with ``row`` number, ``label`` and true ``probability`` of every
            row, and its ``hour`` where the shape has one.
        rows: Number of rows.
        seed: Seed of the planted model and of the rows.
        shape: Which raw format it has.
    """

    paths: tuple[str, ...]
    truths: tuple[str, ...]
    rows: int
    seed: int
    shape: ShapeName


def write_synthetic(
    folder: str, rows: int, seed: int, shape: ShapeName = "criteo", *, emit: Emit = no_events
) -> SyntheticLog:
    """Write a planted log on Ray, file by file in bounded memory.

    Files that are there are kept: a log that is complete is not written again, one that was
    interrupted or is to be longer goes on. Another synthetic log is replaced.

    Args:
        folder: Where to, shared by the nodes of the cluster if it has several.
        rows: Number of rows.
        seed: Any integer.
        shape: The raw format, with its cardinalities and missing shares.
        emit: Gets the events of lost tasks, e.g. ``Run.event``.

    Raises:
        OptionError: no rows are asked for, there is no such shape, or the folder holds a log of
            somebody else's.
    """
    if rows < 1:
        raise OptionError(f"--rows {rows}: a log needs at least one row")
    if shape not in get_args(ShapeName):
        raise OptionError(f"--shape {shape}: choose one of {', '.join(get_args(ShapeName))}")
    folder = storage.absolute(folder)
    parts = range(_parts(rows))
    log = SyntheticLog(
        paths=tuple(storage.join(folder, _part_name(index, shape)) for index in parts),
        truths=tuple(storage.join(folder, _truth_name(index)) for index in parts),
        rows=rows,
        seed=seed,
        shape=shape,
    )
    done = _claim(folder, {"generator": GENERATOR_VERSION, "shape": shape, "seed": seed, "rows": rows})
    with ThreadPoolExecutor(READING_THREADS) as pool:
        sound = pool.map(lambda index: _is_intact(folder, index, shape, done), parts)
        todo = [index for index, kept in zip(parts, sound, strict=True) if not kept]
    if todo:
        _write_parts(folder, log, todo, emit)
    return log


def _parts(rows: int) -> int:
    return (rows + PART_ROWS - 1) // PART_ROWS


def _part_name(index: int, shape: ShapeName) -> str:
    return f"part-{index:05d}.{FORMATS[shape].suffix}"


def _truth_name(index: int) -> str:
    return f"truth-{index:05d}.parquet"


def _digests_name(index: int) -> str:
    return f"digests-{index:05d}.json"


def _is_intact(folder: str, index: int, shape: ShapeName, there: set[str]) -> bool:
    """Whether a file and its truth are there, and are what was written."""
    names = {_part_name(index, shape), _truth_name(index)}
    if not {*names, _digests_name(index)} <= there:
        return False
    try:
        record = storage.read_sealed_json(storage.join(folder, _digests_name(index)), dict[str, str], fix=FIX)
        storage.Checksums(folder=folder, sha256={name: record[name] for name in names}, again=FIX).check_all()
    except (DataError, KeyError) as error:
        console.warn(f"the synthetic log: {error}")
        return False
    return True


def _rows_of_part(index: int, rows: int) -> int:
    return min(PART_ROWS, rows - index * PART_ROWS)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What is recorded of a log, by any release."""

    generator: int
    shape: ShapeName
    seed: int
    rows: int


def _claim(folder: str, record: dict[str, Any]) -> set[str]:
    """Make the folder this log's own: remove the files of another one; returns those that are there.

    The record is written before the first file: a folder without one holds nothing of ours.

    Raises:
        OptionError: files of these names are there that were not written here.
    """
    place = storage.join(folder, RECORD)
    names = storage.list_names(folder)
    before = _recorded(place) if RECORD in names else None
    own = {} if before is None else _own_names(names, before.shape)
    foreign = [name for name in _own_names(names, record["shape"]) if name not in own]
    if (RECORD in names and before is None) or foreign:
        raise OptionError(
            f"{storage.join(folder, foreign[0]) if foreign else place}: not of a synthetic log; move it "
            "away, or read the log with --source and --input"
        )
    valid = 0 if before is None else _valid_parts(before, record)
    kept = {name for name, (part, temporary) in own.items() if part < valid and not temporary}
    for name in own.keys() - kept:
        storage.remove(storage.join(folder, name))
    if before is None or asdict(before) != record:
        storage.write_json(place, record)
    return kept


def _recorded(place: str) -> _Record | None:
    """What is recorded of a log; None: it is not of a log of ours."""
    try:
        return storage.read_json(place, _Record)
    except DataError:
        return None


def _own_names(names: list[str], shape: ShapeName) -> dict[str, tuple[int, bool]]:
    """Names that files of a log can have: part, and whether an interrupted write left it."""
    pattern = re.compile(
        rf"\.?(?:part-(\d{{5,}})\.{FORMATS[shape].suffix}|truth-(\d{{5,}})\.parquet|digests-(\d{{5,}})\.json)(\.[0-9a-f]{{32}}\.tmp)?"
    )
    matches = {name: pattern.fullmatch(name) for name in names}
    return {name: (int(m[1] or m[2] or m[3]), m[4] is not None) for name, m in matches.items() if m}


def _valid_parts(before: _Record, record: dict[str, Any]) -> int:
    """How many of the first files of the log that is there are files of the one that is wanted."""
    if any(getattr(before, key) != record[key] for key in ("generator", "shape", "seed")):
        return 0
    if before.rows == record["rows"]:
        return _parts(record["rows"])
    # The last file of the shorter log is a piece of the longer's.
    return int(min(before.rows, record["rows"]) // PART_ROWS)


def _write_parts(folder: str, log: SyntheticLog, todo: list[int], emit: Emit) -> None:
    cluster.ensure_ray()
    what = "writing the synthetic log"
    if len(todo) < len(log.paths):
        console.info(f"  {what}: {len(log.paths) - len(todo)} of {len(log.paths)} files are there")

    def submit(index: int) -> Any:
        count = _rows_of_part(index, log.rows)
        return _write_part.options(name=what).remote(folder, log.shape, log.seed, index, count)

    with console.progress(what, sum(_rows_of_part(index, log.rows) for index in todo)) as advance:
        run_tasks(
            submit,
            todo,
            finished=lambda index, _: advance(_rows_of_part(index, log.rows)),
            what=what,
            name_of=lambda index: f"file {index}",
            emit=emit,
        )


@ray.remote(max_retries=0)
def _write_part(folder: str, shape: ShapeName, seed: int, index: int, count: int) -> None:
    """Write one file and its truth, and then the digests of both."""
    # Polars sizes its thread pool when first used; Ray has given this task one core.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    model, writer = _model_and_writer(shape, seed)
    text, truth = BytesIO(), BytesIO()
    truths = []
    for first in range(0, count, BLOCK_ROWS):
        rows = model.block((index * PART_ROWS + first) // BLOCK_ROWS)
        writer.write(writer.frame(rows).head(count - first), text, first=first == 0)
        truths.append(writer.truth(rows).head(count - first))
    pq.write_table(pl.concat(truths).to_arrow(), truth)
    digests = {}
    for name, content in (
        (_truth_name(index), truth.getvalue()),
        (_part_name(index, shape), text.getvalue()),
    ):
        storage.write_bytes(storage.join(folder, name), content)
        digests[name] = storage.sha256(content)
    storage.write_sealed_json(storage.join(folder, _digests_name(index)), digests)


@lru_cache(maxsize=1)
def _model_and_writer(shape: ShapeName, seed: int) -> tuple[PlantedModel, LineWriter]:
    """Kept by a worker for its next file: making them costs as much as writing 100,000 rows."""
    model = PlantedModel(SHAPES[shape], seed)
    return model, LineWriter(FORMATS[shape], model)
