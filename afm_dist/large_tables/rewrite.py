"""Compressing the table of a checkpoint (paper eq. 10 and 12) without having it in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from afm_dist import __version__, storage
from afm_dist.checkpoint.files import check_files
from afm_dist.checkpoint.pretrained import MAX_FILE_BYTES, save_plan, write_checkpoint
from afm_dist.compression.method import RowEncoder
from afm_dist.compression.plan import TABLE, Plan, PlanEntry
from afm_dist.compression.registry import method_for
from afm_dist.compression.rewrite import compress_
from afm_dist.errors import OptionError
from afm_dist.large_tables.codes import CodeParts, make_codes
from afm_dist.large_tables.ranges import row_groups
from afm_dist.large_tables.stored import Described, as_bytes, header, in_file_order
from afm_dist.large_tables.table_checkpoint import WEIGHT, TableCheckpoint, empty_model
from afm_dist.modules.tensors import named_tensors
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime.resources import CPU_EACH, CpuOptions
from afm_dist.statistics.moments import RANGE_ROWS, Moments
from afm_dist.statistics.statistics import Statistics

# Folders of parts beside the result.
CODES_PREFIX = "codes-"


def compress_table(
    source: TableCheckpoint,
    target: str,
    plan: Plan,
    moments: Mapping[str, Moments],
    sensitivity: Mapping[str, Tensor] | None = None,
    *,
    options: CpuOptions = CPU_EACH,
    emit: Emit = no_events,
    range_rows: int = RANGE_ROWS,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Do what ``compress_`` and ``save_pretrained`` do, byte for byte, for a table larger than memory.

    All that depends on no row (projections, biases, the layer that reads the codes) comes from
    ``compress_`` itself, on the same model with one row a field. The codes come from tasks, in parts that
    lie beside the result until they are joined, and what else has a row for each id is copied piece by
    piece. An interrupted rewrite goes on from its parts.

    Args:
        source: The checkpoint.
        target: The new one's directory, a location that all workers share.
        plan: One entry, for the table.
        moments: Of its fields, from ``stored_moments``.
        sensitivity: E[ggᵀ] by the same names, where the method needs it.
        options: What each task gets of the cluster; the result is the same bytes whatever it is.
        emit: Gets the events.
        range_rows: Rows of a task, at most.
        max_file_bytes: Where the tensors are split over several files.

    Raises:
        OptionError: a plan for something else, a method whose factors are no function of the moments, or
            moments that are missing.
        DataError: a file of the checkpoint is damaged.
        StageError: workers kept dying, or the storage kept failing.

    Notes:
        A process holds a block of rows and the codes of ``range_rows`` rows, at most. With several threads
        ``compress_`` may round the last bit of a code in another way.
    """
    entry = _entry(plan)
    model, with_rows = source.without_rows()
    encoders = _encoders(source, model, entry, Statistics(moments, sensitivity))
    compress_(model, plan, moments, sensitivity)
    small = {name: tensor for name, tensor in named_tensors(model).items() if name not in with_rows}
    fingerprint = storage.fingerprint(
        {
            "version": __version__,
            "checkpoint": source.mark(),
            "plan": plan.to_json(),
            "range_rows": range_rows,
            "encode": [encoder.digest for encoder in encoders],
        }
    )
    parts = CodeParts(
        table=source.table,
        encoders=encoders,
        groups=row_groups(source.cardinalities, range_rows),
        folder=storage.join(target, f"{CODES_PREFIX}{fingerprint[:16]}"),
        fingerprint=fingerprint,
    )
    check_files(source.location)
    make_codes(parts, options=options, emit=emit)

    shapes = named_tensors(empty_model(source.config, plan))
    described = {name: _described(name, shapes[name], parts, small, source) for name in shapes}

    def write(location: str, names: Sequence[str]) -> None:
        ours = {name: described[name] for name in names}
        with storage.open_write(location) as file:
            file.write(header(ours))
            for name in in_file_order(ours):
                for piece in _pieces(name, parts, small, source):
                    file.write(piece)

    config = replace(source.config, plan=source.config.plan + plan)
    sizes = {name: item.nbytes for name, item in described.items()}
    write_checkpoint(target, config, sizes, write, max_file_bytes=max_file_bytes)
    save_plan(plan, target)
    # Also those of an interrupted call that asked for something else.
    for name in storage.list_names(target):
        if name.startswith(CODES_PREFIX):
            storage.remove(storage.join(target, name))


def _entry(plan: Plan) -> PlanEntry:
    """Give the entry of the table.

    Raises:
        OptionError: there are others.
    """
    if [entry.name for entry in plan.entries] != [TABLE]:
        named = ", ".join(f"{entry.name} ({entry.config.label})" for entry in plan.entries) or "nothing"
        raise OptionError(f"a plan for {named}: only {TABLE} is compressed without being in memory")
    (entry,) = plan.entries
    return entry


def _encoders(
    source: TableCheckpoint, model: nn.Module, entry: PlanEntry, known: Statistics
) -> list[RowEncoder]:
    """Give what makes the stored rows of each field.

    Raises:
        OptionError: the method needs more than moments, or they are missing.
    """
    method = method_for(entry.config, model.get_submodule(TABLE))
    if method is None:
        raise OptionError(f"{TABLE} cannot be compressed by {entry.config.tag}")
    width = source.table.shape[1]
    return [method.row_encoder(TABLE, field, entry.config, width, known) for field in source.fields]


def _described(
    name: str, shape: Tensor, parts: CodeParts, small: Mapping[str, Tensor], source: TableCheckpoint
) -> Described:
    if name == WEIGHT:
        found = parts.described
    elif name in small:
        found = Described(shape=tuple(small[name].shape), dtype=small[name].dtype)
    else:
        found = Described(shape=source.tensors[name].shape, dtype=source.tensors[name].dtype)
    assert found.shape == tuple(shape.shape), name
    return found


def _pieces(
    name: str, parts: CodeParts, small: Mapping[str, Tensor], source: TableCheckpoint
) -> Iterable[memoryview]:
    if name == WEIGHT:
        return parts.pieces()
    if name in small:
        return [as_bytes(small[name].contiguous())]
    return source.tensors[name].pieces()
