"""The training rows in random order, out of core: written in runs, each sorted by where its rows go.

Row k of the training split in the order of the log, of n, becomes row π(k) of its shards, π being a
permutation drawn by the seed: a function of n and the seed alone, so the same for every cut of the
input. The shards are made in *buckets* of consecutive ones. A *run* holds consecutive rows of the log,
those that go to one bucket together; a bucket is then gathered from all runs. No more than one run or
one bucket is in memory.

A run is a file of rows of 4-byte words, and after them a table of contents: for each bucket, where its
rows start and stop, and their checksum.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from afm_dist import storage
from afm_dist.errors import DataError
from data_prep.permutation import Permutation
from data_prep.shards import Piece, shard_sizes

# As many runs and buckets, until either would need more memory than this.
FAN = 128
MEMORY_BYTES = 128 << 20
WORD = np.dtype("<i4")
CONTENTS = np.dtype([("start", "<i8"), ("stop", "<i8"), ("checksum", "<u4")])
# Fetched at once from an object store: what of a run goes to one bucket is small.
READ_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Some consecutive shards.

    Attributes:
        first_shard: The number of the first.
        sizes: Rows of each.
    """

    first_shard: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RowRun:
    """Consecutive training rows of the log.

    Attributes:
        path: Its file.
        first_row: Number of the first row.
        pieces: Where the rows are spooled.
    """

    path: str
    first_row: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """Where each training row goes.

    Attributes:
        seed: Of the order.
        words: Of a row.
        buckets: All shards.
    """

    seed: int
    words: int
    buckets: tuple[Bucket, ...]

    @property
    def _bounds(self) -> NDArray[np.int64]:
        """(buckets + 1) the first row of each, and the number of all rows."""
        return np.array([0, *accumulate(sum(bucket.sizes) for bucket in self.buckets)])

    def write_run(self, run: RowRun, rows: NDArray[np.int32]) -> None:
        """Write a run.

        Args:
            run: Which.
            rows: Its (B, words) in the order of the log; the first word of each is overwritten.
        """
        bounds = self._bounds
        order, places = _by_place(Permutation(n=int(bounds[-1]), seed=self.seed), run.first_row, len(rows))
        cuts = np.searchsorted(places, bounds)
        contents = np.zeros(len(self.buckets), dtype=CONTENTS)
        with storage.open_write(run.path) as file:
            for bucket, (start, stop) in enumerate(pairwise(cuts)):
                some = rows[order[start:stop]].astype(WORD, copy=False)
                some[:, 0] = places[start:stop] - bounds[bucket]
                content = some.tobytes()
                file.write(content)
                contents[bucket] = start, stop, _checksum(start, stop, content)
            file.write(contents.tobytes())

    def read_bucket(self, index: int, runs: Sequence[tuple[str, int]]) -> NDArray[np.int32]:
        """Gather a bucket.

        Args:
            index: Which.
            runs: Path and rows of every run.

        Returns:
            Its (B, words) in their new order; the first word of each is its number.

        Raises:
            DataError: a run is damaged.
        """
        gathered = np.empty((sum(self.buckets[index].sizes), self.words), dtype=np.int32)
        found = 0
        for path, n_rows in runs:
            rows = self._read(path, n_rows, index)
            gathered[rows[:, 0]] = rows
            found += len(rows)
        assert found == len(gathered), f"{found} rows of {len(gathered)}"
        return gathered

    def _read(self, path: str, n_rows: int, bucket: int) -> NDArray[np.int32]:
        """What of a run goes to a bucket."""
        row_bytes = WORD.itemsize * self.words
        with storage.open_read(path, READ_BYTES) as file:
            file.seek(n_rows * row_bytes + bucket * CONTENTS.itemsize)
            entry = file.read(CONTENTS.itemsize)
            if len(entry) < CONTENTS.itemsize:
                raise _damaged(path)
            start, stop, checksum = (int(value) for value in np.frombuffer(entry, dtype=CONTENTS)[0])
            if not 0 <= start <= stop <= n_rows:
                raise _damaged(path)
            file.seek(start * row_bytes)
            content = file.read((stop - start) * row_bytes)
        if len(content) != (stop - start) * row_bytes or _checksum(start, stop, content) != checksum:
            raise _damaged(path)
        return np.frombuffer(content, dtype=WORD).reshape(-1, self.words)


def make_shuffle(rows: int, rows_per_shard: int, columns: int, seed: int) -> Shuffle:
    """How the rows of a training split are shuffled.

    Args:
        rows: Of the split.
        rows_per_shard: Largest number of rows of a shard.
        columns: Of a shard, the label included.
        seed: Of the order.
    """
    words = 1 + columns
    sizes = shard_sizes(rows, rows_per_shard)
    fitting = rows_in_memory(words) // max(sizes)
    together = max(1, min(fitting, len(sizes) // FAN))
    buckets = (
        Bucket(first_shard=first, sizes=tuple(sizes[first : first + together]))
        for first in range(0, len(sizes), together)
    )
    return Shuffle(seed=seed, words=words, buckets=tuple(buckets))


def cut_into_runs(part_rows: Sequence[int], shuffle: Shuffle, folder: str) -> list[RowRun]:
    """Whole parts, in order, as runs.

    Args:
        part_rows: Training rows of each part.
        shuffle: What becomes of them.
        folder: Where the runs are to lie.
    """
    most = min(rows_in_memory(shuffle.words), sum(part_rows) // FAN)
    groups: list[list[Piece]] = []
    filled = most
    for part, rows in enumerate(part_rows):
        if not rows:
            continue
        if filled + rows > most:
            groups.append([])
            filled = 0
        groups[-1].append(Piece(part=part, start=0, stop=rows))
        filled += rows
    firsts = accumulate((sum(piece.stop for piece in group) for group in groups), initial=0)
    return [
        RowRun(path=storage.join(folder, f"run-{index:05d}"), first_row=first, pieces=tuple(group))
        for index, (first, group) in enumerate(zip(firsts, groups, strict=False))
    ]


def rows_in_memory(words: int) -> int:
    """How many rows a run or a bucket may have, if one part or one shard does not have more."""
    return MEMORY_BYTES // (WORD.itemsize * words)


def _by_place(
    permutation: Permutation, first: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What sorts some consecutive rows by where they go, and where these go."""
    places = permutation(np.arange(first, first + count))
    order = np.argsort(places)
    return order, places[order]


def _checksum(start: int, stop: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(b"%d %d" % (start, stop)))


def _damaged(path: str) -> DataError:
    return DataError(f"{path}: damaged; run the same command again: what was altered is made anew")
