"""Rows as tensors, and cutting them into batches.

Shape legend: B batch, F categorical fields, C numeric fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from afm_dist.dataset.manifest import Manifest


@dataclass(frozen=True)
class Batch:
    """Some rows.

    Attributes:
        ids: Shape (B, F), int32, row-major, counted from 0 within each field.
        numeric: Shape (B, C), float32, row-major; missing values are 0, the field's mean.
        labels: Shape (B,), float32, 0 or 1.
    """

    ids: Tensor
    numeric: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.ids[rows], self.numeric[rows], self.labels[rows])

    def take(self, rows: Tensor) -> Batch:
        """Copy some rows in a given order; ``rows`` has shape (B,), int64."""
        # Several times faster than indexing with a tensor.
        return Batch(*(tensor.index_select(0, rows) for tensor in (self.ids, self.numeric, self.labels)))

    def to(self, device: torch.device | str) -> Batch:
        """Move the rows to a device; returns themselves, if they are there."""
        return Batch(*(tensor.to(device) for tensor in (self.ids, self.numeric, self.labels)))

    @classmethod
    def room(cls, manifest: Manifest, rows: int) -> Batch:
        """Rows of a dataset's shape without content, to be written to."""
        return cls(
            torch.empty(rows, len(manifest.categorical), dtype=torch.int32),
            torch.empty(rows, len(manifest.numeric)),
            torch.empty(rows),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Batch]) -> Batch:
        """All rows of several batches in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.numeric for part in parts]),
            torch.cat([part.labels for part in parts]),
        )


class RowSource(Protocol):
    """What batches are cut from: a batch, or rows that become one when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Batch: ...


def rebatch(parts: Iterable[RowSource], sizes: Iterable[int]) -> Iterator[Batch]:
    """Cut rows into batches of other sizes, as long as there are rows and sizes.

    Args:
        parts: Rows in order. Each is sliced before the next is asked for, never after.
        sizes: Rows of each batch. When the parts end first, the last batch is smaller.
    """
    wanted = iter(sizes)
    missing = next(wanted, None)
    waiting: list[Batch] = []
    for part in parts:
        start = 0
        while missing is not None and start + missing <= len(part):
            yield Batch.concatenate([*waiting, part[start : start + missing]])
            start += missing
            waiting = []
            missing = next(wanted, None)
        if missing is None:
            return
        if start < len(part):
            waiting.append(part[start:])
            missing -= len(part) - start
        # Not kept in memory while the next is made.
        del part
    if waiting:
        yield Batch.concatenate(waiting)
