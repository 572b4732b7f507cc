"""Moments of a table's fields from counts, over Ray by ranges of rows: the same bits as in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from afm_dist import __version__
from afm_dist.checkpoint.config import check_schema
from afm_dist.checkpoint.files import check_files
from afm_dist.compression.plan import TABLE
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.vocabulary_file import read_count_range
from afm_dist.errors import DataError
from afm_dist.large_tables.ranges import Group, row_groups, rows_of
from afm_dist.large_tables.stored import StoredTensor
from afm_dist.large_tables.table_checkpoint import TableCheckpoint
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime.cluster import ensure_ray
from afm_dist.runtime.resources import CPU_EACH, CpuOptions, TaskResources
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import RANGE_ROWS, TABLE_ROWS, Moments, moments_of_blocks
from afm_dist.statistics.partials import Partials
from afm_dist.statistics.ray_pass import RayPass, Work


@dataclass(frozen=True, kw_only=True)
class TableWork(Work):
    """Moments of the fields of a stored table.

    Attributes:
        table: Rows of all fields, shape (V, T).
        manifest: The dataset whose vocabulary has the counts.
        groups: Rows of each task.
        partials: Where results are committed.
    """

    table: StoredTensor
    manifest: Manifest
    groups: Sequence[Group]
    partials: Partials

    @property
    def rows(self) -> list[int]:
        """Of each group."""
        return [rows_of(group) for group in self.groups]

    def moments(self, group: int) -> dict[str, Moments]:
        """Of some ranges, of which no two are of one field."""
        found = {}
        for rows in self.groups[group]:
            field = self.manifest.categorical[rows.field]
            counts = torch.from_numpy(read_count_range(self.manifest, field, rows.start, rows.stop))
            first = rows.offset + rows.start
            blocks = self.table.blocks(first, first + len(rows), TABLE_ROWS)
            try:
                found[field_key(TABLE, field.name)] = moments_of_blocks(
                    zip(blocks, counts.split(TABLE_ROWS), strict=True), self.table.shape[1]
                )
            except ValueError as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"{self.table.location}: {TABLE}, field {field.name!r}, ids {rows.start} to "
                    f"{rows.stop - 1}: {error}; look for a diverged model"
                ) from error
        return found


def stored_moments(
    source: TableCheckpoint,
    manifest: Manifest,
    *,
    folder: str,
    options: CpuOptions = CPU_EACH,
    emit: Emit = no_events,
    range_rows: int = RANGE_ROWS,
) -> dict[str, Moments]:
    """Do what ``moments_from_counts`` does, for a table that may be larger than memory.

    A task holds a block of rows and the counts of ``range_rows`` ids; the partials are summed in the
    order of the rows. An interrupted pass goes on from its partials, which stay in ``folder`` until
    ``remove_partials`` deletes them.

    Args:
        source: The checkpoint.
        manifest: The dataset whose vocabulary says how often each id occurs in training.
        folder: Where partials are committed, a location that all workers share.
        options: What each task gets of the cluster; the result is the same bits whatever it is.
        emit: Gets the events of the pass.
        range_rows: Rows of a task, at most. Another number is another order of summation: equal up to
            round-off, not in bits.

    Returns:
        By ``embedding[field]``.

    Raises:
        DataError: the model was trained on another schema, a vocabulary or a file of the checkpoint is
            damaged, or an embedding of an id that occurs is not finite.
        StageError: workers kept dying, or the storage kept failing.
    """
    # Tasks pair the fields of both by their places.
    check_schema(source.config, manifest, checkpoint=source.location)
    for field in manifest.categorical:
        # Tasks read ranges of a vocabulary, which no checksum covers.
        if field.name in manifest.vocabulary:
            manifest.check(manifest.vocabulary[field.name])
    # Tasks read blocks, which no checksum covers.
    check_files(source.location)
    ensure_ray()
    facts = {
        "version": __version__,
        "torch": torch.__version__,
        "checkpoint": source.mark(),
        "data": manifest.fingerprint(),
        "blocks": [TABLE_ROWS, range_rows],
    }
    work = TableWork(
        table=source.table,
        manifest=manifest,
        groups=row_groups(source.cardinalities, range_rows),
        partials=Partials(parent=folder, facts=facts),
    )
    moments = RayPass(work, TaskResources(cpus=options.task_cpus), emit).run()
    rows = manifest.rows("train")
    for key, found in moments.items():
        if found.count != rows:
            raise DataError(
                f"{manifest.location}: the vocabulary counts {found.count} occurrences of {key}, but the "
                f"manifest has {rows} training rows; prepare the data again"
            )
    return moments
