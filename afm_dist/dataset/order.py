"""The order in which training sees the rows, and which worker sees which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afm_dist.dataset.batch import Batch, RowSource, rebatch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.shard import Columns, OpenShard

WINDOW_ROWS = 200_000

# What a generator's seed is for: streams of random numbers that never meet.
_SHARDS, _GROUPS, _ROWS = range(3)


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """The rows of each batch of an epoch: a function of manifest, seed, epoch and number of workers.

    The sequence of an epoch is all row groups of all shards: the shards permuted, and the row
    groups within each. It is cut into one stretch of consecutive rows per worker, of equal length
    to within one row; so a worker reads its own row groups and at most two that it shares. Within
    a stretch the rows of each window of ``window`` consecutive rows are permuted. Where a row stood in the
    log plays no part, since a preparation shuffles the training rows (``Manifest.row_order``).

    The workers make the same number of steps and together see every row exactly once: row j of
    worker r of w is row j·w + r of a global order, of which step s takes rows s·batch_size …
    (s+1)·batch_size − 1.

    Attributes:
        batch_size: Rows of a global batch, over all workers.
        seed: Of the permutations.
        shuffle: Whether anything is permuted; otherwise the sequence is the manifest's.
        window: Rows that are permuted together. One window, one row group and one shard as it
            lies on disk are in memory.
        rank: r.
        world_size: w.
        split: Which rows.
    """

    manifest: Manifest
    batch_size: int
    seed: int
    shuffle: bool = True
    window: int = WINDOW_ROWS
    rank: int = 0
    world_size: int = 1
    split: str = "train"

    @property
    def steps(self) -> int:
        """Steps of an epoch: every row once, the last batch possibly smaller."""
        return -(-self.manifest.rows(self.split) // self.batch_size)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield this worker's part of each global batch, from a step on.

        A part may be empty where a global batch has fewer rows than there are workers. Nothing
        before the window of the first row is decoded.

        Raises:
            DataError: as ``read_shard``.
        """
        bounds = [self._rows_before(step) for step in range(first_step, self.steps + 1)]
        sizes = (after - before for before, after in pairwise(bounds))
        return rebatch(self._stretch(epoch, bounds[0]), sizes)

    def _rows_before(self, step: int) -> int:
        """Rows of this worker before a step: those of the global order that are r modulo w."""
        rows = min(step * self.batch_size, self.manifest.rows(self.split))
        return (rows + self.world_size - 1 - self.rank) // self.world_size

    def _stretch(self, epoch: int, first: int) -> Iterator[RowSource]:
        """Yield this worker's rows from its row ``first`` on."""
        share, more = divmod(self.manifest.rows(self.split), self.world_size)
        start = self.rank * share + min(self.rank, more)
        stop = start + share + (self.rank < more)
        if self.shuffle:
            skip = first % self.window
            window_start = start + first - skip
            for window in self._windows(epoch, window_start, stop):
                order = self._permutation(len(window), epoch, _ROWS, window_start)
                yield _Permuted(window, torch.from_numpy(order[skip:]))
                window_start += len(window)
                skip = 0
        else:
            yield from self._sequence(epoch, start + first, stop)
        # Steps without a row of this worker are cut from this.
        yield Batch.room(self.manifest, 0)

    def _windows(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        """Rows ``start`` to ``stop`` of the sequence in windows, each in the place of the one before."""
        room = Batch.room(self.manifest, min(self.window, stop - start))
        filled = 0
        for part in self._sequence(epoch, start, stop):
            done = 0
            while done < len(part):
                rows = min(len(part) - done, len(room) - filled)
                part.between(done, done + rows).write(room[filled : filled + rows])
                done += rows
                filled += rows
                if filled == len(room):
                    yield room
                    filled = 0
        if filled:
            yield room[:filled]

    def _sequence(self, epoch: int, start: int, stop: int) -> Iterator[Columns]:
        """Rows ``start`` to ``stop`` of the epoch's sequence of row groups."""
        shards = self.manifest.shards(self.split)
        order = self._permutation(len(shards), epoch, _SHARDS)
        for i, first, end in _between([shards[index].rows for index in order], start, stop):
            shard = OpenShard(self.manifest, shards[order[i]])
            groups = self._permutation(len(shard.group_rows), epoch, _GROUPS, int(order[i]))
            for j, a, b in _between([shard.group_rows[group] for group in groups], first, end):
                yield shard.read_group(groups[j]).between(a, b)

    def _permutation(self, n: int, epoch: int, *of: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(n)
        return np.random.default_rng([self.seed, epoch, *of]).permutation(n)


def _between(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Of pieces of some sizes laid end to end, those with rows from ``start`` to ``stop``.

    Yields:
        The number of the piece; the first of those rows in it; the one after the last.
    """
    position = 0
    for i, size in enumerate(sizes):
        first, end = max(start - position, 0), min(stop - position, size)
        if first < end:
            yield i, first, end
        position += size


@dataclass(frozen=True)
class _Permuted:
    """Rows in another order, put into it when they are asked for: no second copy of a window."""

    rows: Batch
    order: Tensor

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, rows: slice) -> Batch:
        return self.rows.take(self.order[rows])
