"""From shards to batches, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

from afm_dist.dataset.batch import Batch, rebatch
from afm_dist.dataset.manifest import Manifest, Shard
from afm_dist.dataset.shard import Columns, OpenShard


def read_shard(manifest: Manifest, shard: Shard) -> Batch:
    """All rows of one shard, its checksum, every id's range and every label checked.

    Raises:
        DataError: the shard is missing, truncated or altered, its columns are others than the
            manifest's, or it holds an id outside its field's table or a label other than 0 and 1.
    """
    groups = [group[:] for group in _read_groups(manifest, [shard])]
    return Batch.concatenate(groups) if groups else Batch.room(manifest, 0)


def read_batches(manifest: Manifest, shards: Sequence[Shard], batch_size: int) -> Iterator[Batch]:
    """Rows of some shards in order, in batches of a fixed size; only the last may be smaller.

    One shard as it lies on disk, one row group and one batch are in memory.

    Raises:
        DataError: as ``read_shard``.
    """
    return rebatch(_read_groups(manifest, shards), repeat(batch_size))


def _read_groups(manifest: Manifest, shards: Iterable[Shard]) -> Iterator[Columns]:
    for shard in shards:
        opened = OpenShard(manifest, shard)
        for group in range(len(opened.group_rows)):
            yield opened.read_group(group)
