"""What a preparation would read and write; starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from afm_dist.dataset.manifest import Field, Manifest, Shard
from afm_dist.planning.capacity import Estimate, JobPlan, size
from afm_dist.planning.show import conclude
from afm_dist.runtime import console
from afm_dist.runtime.cluster import view
from afm_dist.runtime.resources import CPU_EACH, Cluster, CpuOptions, TaskResources
from data_prep.protocol import Protocol, SplitBy
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.planted import PART_ROWS
from data_prep.sources.planted_shapes import SHAPES, ShapeName
from data_prep.sources.source import RawField, Source, known_columns
from data_prep.sources.text_log import TextLog

FORMATS: Mapping[ShapeName, type[TextLog]] = {"criteo": CriteoSource, "avazu": AvazuSource}
BYTES_PER_VALUE = 4
MEMORY_PER_WORKER = 500_000_000
MEMORY_OF_DRIVER = 500_000_000
ROWS_PER_SECOND_AND_CORE = 150_000
# Of a planted log in Criteo's shape: rows for each id of a field, until it has all its tokens.
ROWS_PER_ID = 30


@dataclass(frozen=True, kw_only=True)
class _Log:
    """What is read: its fields, its size, the rows of each file, and the number of blocks."""

    fields: Sequence[RawField]
    bytes: int
    rows_of_files: Sequence[int]
    n_blocks: int

    @property
    def rows(self) -> int:
        return sum(self.rows_of_files)


def show_plan(
    source: Source,
    protocol: Protocol,
    output: str | None = None,
    options: CpuOptions = CPU_EACH,
) -> None:
    """What a preparation would read and write; starts nothing.

    Args:
        source: The raw log.
        protocol: How it is prepared.
        output: The dataset directory.
        options: What each task gets.

    Raises:
        OptionError: the protocol does not fit the log, or the cluster cannot hold it.
    """
    source.deciding(protocol.split(len(source.paths)))
    log = _read(source)
    files = console.counted(len(log.rows_of_files), "file")
    console.info(f"reads {files}, {log.bytes / 1e6:,.1f} MB, about {log.rows:,} rows")
    _show(log, protocol, output, options)


def show_synthetic_plan(
    rows: int,
    shape: ShapeName,
    protocol: Protocol,
    output: str | None = None,
    options: CpuOptions = CPU_EACH,
) -> None:
    """The same for a log that is not written yet.

    Raises:
        OptionError: the protocol does not fit the log, or the cluster cannot hold it.
    """
    log, form = _synthetic(rows, shape), FORMATS[shape]
    known_columns(protocol.split(len(log.rows_of_files)), form.names, form.label)
    console.info(f"writes a raw log of {rows:,} rows, about {log.bytes / 1e6:,.1f} MB, and reads it")
    _show(log, protocol, output, options)


def preparation_plan(source: Source, protocol: Protocol, output: str, options: CpuOptions) -> JobPlan:
    """What a preparation takes, and what the cluster has; arguments as ``show_plan``."""
    return _plan(_read(source), protocol, output, options)


def _read(source: Source) -> _Log:
    blocks = source.blocks()
    rows = [0] * len(source.paths)
    for block in blocks:
        rows[block.file] += block.expected_rows
    return _Log(
        fields=source.fields,
        bytes=sum(file.bytes for file in source.inputs),
        rows_of_files=rows,
        n_blocks=len(blocks),
    )


def _synthetic(rows: int, shape: ShapeName) -> _Log:
    rows_of_files = [min(PART_ROWS, rows - first) for first in range(0, rows, PART_ROWS)]
    return _Log(
        fields=[column.field for column in FORMATS[shape].layout],
        bytes=rows * SHAPES[shape].bytes_per_row,
        rows_of_files=rows_of_files,
        n_blocks=len(rows_of_files),
    )


def synthetic_manifest(rows: int, protocol: Protocol) -> Manifest:
    """What a planted log in Criteo's shape becomes, very nearly."""
    shape = SHAPES["criteo"]
    shares = {"validation": protocol.validation_share, "test": protocol.test_share}
    shares["train"] = 1 - sum(shares.values())
    row_bytes = 1 + BYTES_PER_VALUE * (len(shape.tokens) + len(shape.integers))
    splits = {}
    for split, share in shares.items():
        total, most = round(share * rows), protocol.rows_per_shard
        sizes = [min(most, total - first) for first in range(0, total, most)]
        splits[split] = tuple(
            Shard(path="", rows=count, bytes=count * row_bytes, sha256="") for count in sizes
        )
    return Manifest(
        location="",
        label="label",
        fields=(
            *(
                Field(
                    name=token.name,
                    kind="categorical",
                    cardinality=1 + min(token.cardinality, rows // ROWS_PER_ID),
                )
                for token in shape.tokens
            ),
            *(Field(name=integer.name, kind="numeric") for integer in shape.integers),
        ),
        splits=splits,
    )


def estimate_synthetic(rows: int, protocol: Protocol, cluster: Cluster, tasks: TaskResources) -> Estimate:
    """What writing and preparing a planted log in Criteo's shape takes."""
    log = _synthetic(rows, "criteo")
    estimate = _estimate(log, protocol, cluster, tasks)
    return replace(estimate, disk=estimate.disk + log.bytes)


def _estimate(log: _Log, protocol: Protocol, cluster: Cluster, tasks: TaskResources) -> Estimate:
    cpus = max(1, min(cluster.cpus, tasks.slots(cluster.nodes)))
    return Estimate(
        stage="prepare",
        place="tasks",
        rows=log.rows,
        tasks=max(log.n_blocks, len(log.fields), log.rows // protocol.rows_per_shard),
        memory=MEMORY_PER_WORKER,
        driver=MEMORY_OF_DRIVER,
        # What is spooled, the runs of training rows, and the shards.
        disk=3 * _shards(log, protocol),
        seconds=log.rows / (ROWS_PER_SECOND_AND_CORE * cpus),
    )


def _shards(log: _Log, protocol: Protocol) -> int:
    """Bytes of the shards, at most."""
    return log.rows * (1 + BYTES_PER_VALUE * len(protocol.rules(log.fields)))


def _plan(log: _Log, protocol: Protocol, output: str | None, options: CpuOptions) -> JobPlan:
    cluster, tasks = view(), TaskResources(cpus=options.task_cpus)
    estimate = _estimate(log, protocol, cluster, tasks)
    return JobPlan(estimates=(estimate,), cluster=cluster, tasks=tasks, output=output)


def _show(log: _Log, protocol: Protocol, output: str | None, options: CpuOptions) -> None:
    protocol.split(len(log.rows_of_files))
    fields = len(protocol.rules(log.fields))
    splits = _SPLIT[protocol.split_by](log, protocol)
    plan = _plan(log, protocol, output, options)
    (estimate,), shards = plan.estimates, _shards(log, protocol)
    console.info("stages:")
    console.info("  scan: counts the rows of every block of a file that is cut into several")
    console.info(f"  parse: {console.counted(log.n_blocks, 'block')}, one task each; {splits}")
    console.info(f"  vocabulary: {fields:,} fields, ids of tokens and scales of numbers")
    console.info(f"  encode: shards of up to {protocol.rows_per_shard:,} rows, up to {size(shards)}")
    console.info("  shuffle: gathers the shards of the split 'train', its rows in random order")
    console.info(f"needs up to {size(estimate.disk)} of disk, and about {size(estimate.memory)} per worker")
    console.info(
        f"takes very roughly {_time(estimate.seconds or 0)} on {plan.cluster.cpus:g} cores "
        f"(at {ROWS_PER_SECOND_AND_CORE:,} rows a second and core, after Ray has started)"
    )
    conclude(plan, check=options.capacity_check)


def _by_row(log: _Log, protocol: Protocol) -> str:
    held_out = protocol.validation_share + protocol.test_share
    return _split_line(log.rows * (1 - held_out), log.rows, protocol)


def _by_last_file(log: _Log, protocol: Protocol) -> str:
    last = log.rows_of_files[-1]
    return _split_line(log.rows - last, last, protocol)


def _split_line(train: float, shared_out: int, protocol: Protocol) -> str:
    shares = {"validation": protocol.validation_share, "test": protocol.test_share}
    for split, share in shares.items():
        if share and round(shared_out * share) == 0:
            console.warn(
                f"too few rows for a {split} split: {share:g} of {shared_out:,} is none, or hardly one"
            )
    held_out = " and ".join(f"{shared_out * share:,.0f} {split}" for split, share in shares.items())
    return f"about {train:,.0f} training, {held_out} rows"


def _by_column(log: _Log, protocol: Protocol) -> str:
    return f"column {protocol.split_column!r} decides how many rows each split has"


_SPLIT: Mapping[SplitBy, Callable[[_Log, Protocol], str]] = {
    "row": _by_row,
    "last-file": _by_last_file,
    "column": _by_column,
}


def _time(seconds: float) -> str:
    return f"{max(seconds, 1):,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
