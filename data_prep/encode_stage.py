"""The shards: of held-out splits in the order of the log, of the training split in random order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray

from afm_dist.dataset.manifest import Count, Shard
from data_prep import encode
from data_prep.encode import Encoding
from data_prep.shards import cut_into_shards
from data_prep.shuffle import cut_into_runs, make_shuffle
from data_prep.split import SPLITS, TRAIN
from data_prep.work import Task, WorkDirectory


@dataclass(frozen=True, kw_only=True)
class EncodeStage:
    """What the shards are made of.

    Attributes:
        encoding: What becomes of a row.
        split_rows: For each split its rows in each part.
        rows_per_shard: Largest number of rows of a shard.
        seed: Of the order of the training rows.
        work: Receipts, and the runs of training rows.
    """

    encoding: Encoding
    split_rows: Sequence[Sequence[int]]
    rows_per_shard: int
    seed: int
    work: WorkDirectory

    def run(self) -> tuple[dict[str, list[Shard]], dict[str, Counter[str]]]:
        """Write the shards.

        Returns:
            By split, its shards in order; and, of held-out splits, how many rows of each field have id 0.
        """
        shards: dict[str, list[Shard]] = {name: [] for name in SPLITS}
        unknown: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
        encoding = ray.put(self.encoding)
        columns = len(self.encoding.schema())
        shuffle = make_shuffle(sum(self.split_rows[TRAIN]), self.rows_per_shard, columns, self.seed)
        shuffling = ray.put(shuffle)
        runs = cut_into_runs(self.split_rows[TRAIN], shuffle, self.work.folder("runs"))
        encode_runs = [
            Task(
                key=f"run-{index:05d}",
                function=_encode_run,
                arguments=(encoding, shuffling, run),
                result=type(None),
                weight=run.rows,
            )
            for index, run in enumerate(runs)
        ]
        names, tasks = self._held_out(encoding)
        made = self.work.run("encode", "encoding", [*encode_runs, *tasks])[len(runs) :]
        for name, (shard, missed) in zip(names, made, strict=True):
            shards[name].append(shard)
            unknown[name].update(missed)
        sizes = ray.put([(run.path, run.rows) for run in runs])
        gather = [
            Task(
                key=f"bucket-{index:05d}",
                function=_gather_shards,
                arguments=(encoding, shuffling, index, sizes),
                result=list[Shard],
                weight=sum(bucket.sizes),
            )
            for index, bucket in enumerate(shuffle.buckets)
        ]
        for of_bucket in self.work.run("shuffle", "shuffling", gather):
            shards[SPLITS[TRAIN]] += of_bucket
        return shards, unknown

    def _held_out(self, encoding: Any) -> tuple[list[str], list[Task]]:
        """For each shard of the held-out splits, the split's name and the task."""
        names, tasks = [], []
        for split, name in enumerate(SPLITS):
            if split == TRAIN:
                continue
            for index, pieces in enumerate(cut_into_shards(self.split_rows[split], self.rows_per_shard)):
                names.append(name)
                tasks.append(
                    Task(
                        key=f"{name}-{index:05d}",
                        function=_encode_shard,
                        arguments=(encoding, split, index, pieces),
                        result=tuple[Shard, dict[str, Count]],
                        weight=sum(piece.stop - piece.start for piece in pieces),
                    )
                )
        return names, tasks


def _encode_shard(*arguments: Any) -> tuple[dict[str, Any], dict[str, int]]:
    shard, unknown = encode.encode_shard(*arguments)
    return asdict(shard), unknown


def _encode_run(*arguments: Any) -> None:
    encode.encode_run(*arguments)


def _gather_shards(*arguments: Any) -> list[dict[str, Any]]:
    return [asdict(shard) for shard in encode.gather_shards(*arguments)]
