"""The rows of a dataset on which the sensitivity of the logit is measured: some from all over a split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest, Shard
from afm_dist.dataset.reader import read_batches
from afm_dist.statistics.sensitivity import SAMPLE_BATCH, SAMPLE_ROWS

# From at most so many shards.
SAMPLE_SHARDS = 16


@dataclass(frozen=True)
class Sample:
    """The first batches of some shards.

    Attributes:
        batches: How many, by the path of the shard, in the order of the split.
    """

    batches: Mapping[str, int]

    @classmethod
    def of(cls, manifest: Manifest, split: str = "train") -> Sample:
        """Choose about ``SAMPLE_ROWS`` rows; a function of the manifest alone."""
        shards = manifest.shards(split)
        chosen = shards[:: max(1, -(-len(shards) // SAMPLE_SHARDS))]
        return cls({shard.path: -(-SAMPLE_ROWS // (len(chosen) * SAMPLE_BATCH)) for shard in chosen})

    def read(self, manifest: Manifest, shards: Sequence[Shard]) -> Iterator[Batch]:
        """Yield the batches that lie in some shards, in their order.

        Raises:
            DataError: as ``read_batches``.
        """
        for shard in shards:
            yield from islice(read_batches(manifest, [shard], SAMPLE_BATCH), self.batches.get(shard.path, 0))

    def begins_in(self, shards: Sequence[Shard]) -> bool:
        """Tell whether its first batch lies in some shards."""
        return next(iter(self.batches), None) in {shard.path for shard in shards}


NO_SAMPLE = Sample({})
