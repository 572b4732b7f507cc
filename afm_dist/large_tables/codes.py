"""The codes of a table, E·U_k, over Ray by ranges of rows: each task leaves one part, the driver joins them.

A part is a safetensors file that appears whole or not at all, with the fingerprint of what it was made
from and the digest of its bytes. So it can lie on an object store, and nobody writes into a file of
another's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from afm_dist import storage
from afm_dist.compression.method import RowEncoder
from afm_dist.errors import DataError, StageError
from afm_dist.large_tables.ranges import Group, rows_of
from afm_dist.large_tables.stored import Described, StoredTensor, as_bytes, header, read_header
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import console
from afm_dist.runtime.cluster import ensure_ray, task_slots
from afm_dist.runtime.machine import work_with_threads
from afm_dist.runtime.resources import CPU_EACH, CpuOptions, TaskResources
from afm_dist.runtime.tasks import RetryError, run_tasks
from afm_dist.statistics.moments import TABLE_ROWS

STAGE = "projection"
CODES = "codes"


@dataclass(frozen=True, kw_only=True)
class CodeParts:
    """The codes of a stored table, in parts.

    Attributes:
        table: Rows of all fields, shape (V, T).
        encoders: What makes codes of each field's rows.
        groups: Rows of each part.
        folder: Where the parts lie, a location that all workers share.
        fingerprint: Of all that the parts depend on.
    """

    table: StoredTensor
    encoders: Sequence[RowEncoder]
    groups: Sequence[Group]
    folder: str
    fingerprint: str

    @property
    def described(self) -> Described:
        """All codes together, shape (V, K)."""
        return Described(shape=(self.table.shape[0], self.encoders[0].width), dtype=self.table.dtype)

    def location(self, part: int) -> str:
        """Where a part is committed."""
        return storage.join(self.folder, f"part-{part:05d}.safetensors")

    def missing(self) -> list[int]:
        """Which parts are not there. Whether the others are sound shows when they are read."""
        there = set(storage.list_names(self.folder))
        return [
            part for part in range(len(self.groups)) if self.location(part).rpartition("/")[2] not in there
        ]

    def make(self, part: int) -> None:
        """Compute a part and commit it."""
        group = self.groups[part]
        codes = torch.empty(rows_of(group), self.described.shape[1], dtype=self.table.dtype)
        done = 0
        for rows in group:
            first, encode = rows.offset + rows.start, self.encoders[rows.field]
            for block in self.table.blocks(first, first + len(rows), TABLE_ROWS):
                codes[done : done + len(block)] = encode(block)
                done += len(block)
        content = as_bytes(codes)
        metadata = {"fingerprint": f"{self.fingerprint}/{part}", "sha256": storage.sha256(content)}
        described = {CODES: Described(shape=tuple(codes.shape), dtype=codes.dtype)}
        with storage.open_write(self.location(part)) as file:
            file.write(header(described, metadata))
            file.write(content)

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes of all codes, piece by piece; each is overwritten by the next.

        Raises:
            StageError: a part is damaged, or of something else; it is deleted then.
        """
        for part in range(len(self.groups)):
            try:
                yield from self._pieces(part)
            except DataError as error:
                storage.remove(self.location(part))
                raise StageError(
                    f"{error}; it was deleted, run the same command to make it again. Look for a failing disk"
                ) from error

    def _pieces(self, part: int) -> Iterator[memoryview]:
        location = self.location(part)
        tensors, metadata = read_header(location)
        codes = tensors.get(CODES)
        shape = rows_of(self.groups[part]), self.described.shape[1]
        if (
            metadata.get("fingerprint") != f"{self.fingerprint}/{part}"
            or codes is None
            or codes.shape != shape
        ):
            raise DataError(f"{location}: not the part it should be")
        digest = hashlib.sha256()
        for piece in codes.pieces():
            digest.update(piece)
            yield piece
        if digest.hexdigest() != metadata.get("sha256"):
            raise DataError(f"{location}: checksum does not match")


def make_codes(parts: CodeParts, *, options: CpuOptions = CPU_EACH, emit: Emit = no_events) -> None:
    """Make the parts that are not there yet. A task holds a block of rows, and the codes of its part.

    Args:
        parts: What there is to make.
        options: What each task gets of the cluster.
        emit: Gets the events.

    Raises:
        DataError: a file of the checkpoint is damaged.
        StageError: workers kept dying, or the storage kept failing.
    """
    ensure_ray()
    missing = parts.missing()
    total, todo = parts.table.shape[0], sum(rows_of(parts.groups[part]) for part in missing)
    if len(missing) < len(parts.groups):
        found = len(parts.groups) - len(missing)
        console.info(f"  {found} of {len(parts.groups)} parts were already committed")
        emit("parts found committed", what=STAGE, parts=found)
    resources = TaskResources(cpus=options.task_cpus)
    shared = ray.put(parts)
    make_part = _make_part.options(name=STAGE, **resources.ray_options)
    with console.progress(STAGE, total, before=total - todo) as advance:

        def finished(part: int, receipt: dict[str, Any]) -> None:
            if not storage.exists(parts.location(part)):
                raise RetryError(
                    f"what node {receipt['node']} wrote to {parts.folder} is not there for the driver; all "
                    "nodes must share that folder"
                )
            emit("part committed", what=STAGE, part=part, **receipt)
            advance(rows_of(parts.groups[part]))

        run_tasks(
            lambda part: make_part.remote(shared, part),
            missing,
            finished=finished,
            what=STAGE,
            name_of=lambda part: f"part {part}",
            slots=lambda: task_slots(resources),
            emit=emit,
        )


@ray.remote(max_retries=0)
def _make_part(parts: CodeParts, part: int) -> dict[str, Any]:
    """Commit a part; returns a receipt."""
    work_with_threads(1)
    started = time.monotonic()
    parts.make(part)
    return {"seconds": round(time.monotonic() - started, 3), "node": ray.util.get_node_ip_address()}
