"""Raw log to dataset directory: count, assign ids, encode; out of core, restartable, exact.

1. *scan*: lines per block (a row's number decides its split) and SHA-256 of the inputs;
2. *count*: tokens and numeric sums of the training split, labels, malformed rows;
3. *vocabulary*: one task per field merges the counts and assigns ids;
4. *encode*: one task per group of blocks writes shards.

Groups, shards and ids are functions of the input, the options and the seed: the same bits for any
number of workers, and after any interruption.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import ray

from afm_dist import cluster, console, storage
from afm_dist.dataset.manifest import FILE_NAME, Field, Manifest
from data_prep import counting, encode, vocabulary
from data_prep.counting import GroupCounts
from data_prep.encode import GroupShards, Schema
from data_prep.findings import check_rejected, make_facts
from data_prep.groups import Group, plan_groups, shard_sizes
from data_prep.plan import RECORD, REJECTED, check_output, make_plan, why_prepare
from data_prep.protocol import Protocol
from data_prep.sources import files
from data_prep.sources.source import Block, Source
from data_prep.split import SPLITS, TRAIN
from data_prep.work import Task, WorkDirectory

__all__ = ["Protocol", "prepare"]


def prepare(
    source: Source, output: str, protocol: Protocol, *, resume: Literal["auto", "never"] = "auto"
) -> Manifest:
    """Prepare a raw log, or return the manifest that is already there.

    Args:
        source: The raw log.
        output: The dataset directory to make.
        protocol: Split, threshold and the rest.
        resume: ``auto`` goes on after an interruption, ``never`` starts anew.

    Raises:
        DataError: the log is not what its format says.
        OptionError: ``output`` holds something else.
    """
    output = storage.absolute(output)
    check_output(output)
    plan = make_plan(source, protocol)
    reason = why_prepare(output, plan)
    work = WorkDirectory(output, plan, keep=resume == "auto")
    if reason is None and resume == "auto":
        work.remove()
        console.say(f"{output}: up to date")
        return Manifest.load(output)
    console.say(f"preparing {output} ({reason or 'again: --resume never'})")
    work.begin()
    cluster.ensure_ray()
    return _Preparation(source, output, protocol, plan, work).run()


class _Preparation:
    """The stages, in order; each reads what the one before returned."""

    def __init__(
        self, source: Source, output: str, protocol: Protocol, plan: dict[str, Any], work: WorkDirectory
    ) -> None:
        self.source = source
        self.output = output
        self.protocol = protocol
        self.plan = plan
        self.work = work
        self.shared_source = ray.put(source)

    def run(self) -> Manifest:
        checksums, groups = self.scan()
        counts = self.count(groups)
        total = sum(counts, start=GroupCounts())
        check_rejected(self.source, total, self.protocol, storage.join(self.output, REJECTED))
        self.work.once("clear", self.clear)
        fields = self.fields(groups, counts, total)
        encoded = self.encode(groups, counts, fields)
        return self.finish(checksums, total, fields, encoded)

    def scan(self) -> tuple[list[str], list[Group]]:
        """SHA-256 of each input, and the groups with the first row number of each block."""
        blocks = self.source.blocks()
        grouped = plan_groups(blocks, self.protocol.rows_per_shard)
        per_file = Counter(block.file for block in blocks)
        tasks = [
            Task(key=f"file-{index:05d}", function=files.sha256, arguments=(path,), weight=0)
            for index, path in enumerate(self.source.paths)
        ]
        for index, members in enumerate(grouped):
            # The rows of the only block of a file start at 0, however many there are.
            several = [blocks[i] for i in members if per_file[blocks[i].file] > 1]
            tasks.append(
                Task(
                    key=f"group-{index:05d}",
                    function=_count_rows,
                    arguments=(self.shared_source, several),
                    weight=sum(block.expected_rows for block in several),
                )
            )
        results = self.work.run("scan", "scanning", tasks)
        checksums = results[: len(self.source.paths)]
        row_counts = [iter(rows) for rows in results[len(self.source.paths) :]]
        groups = []
        next_row: Counter[int] = Counter()
        for index, members in enumerate(grouped):
            first_rows = []
            for block in (blocks[i] for i in members):
                first_rows.append(next_row[block.file])
                if per_file[block.file] > 1:
                    next_row[block.file] += next(row_counts[index])
            groups.append(
                Group(index=index, blocks=tuple(blocks[i] for i in members), first_rows=tuple(first_rows))
            )
        return checksums, groups

    def count(self, groups: list[Group]) -> list[GroupCounts]:
        """The first pass."""
        rejected = storage.join(self.output, REJECTED)
        self.work.once("clear-rejected", lambda: storage.remove(rejected))
        tasks = [
            Task(
                key=f"group-{group.index:05d}",
                function=_count_group,
                arguments=(
                    self.shared_source,
                    group,
                    self.protocol.split,
                    self.work.folder("tokens"),
                    rejected,
                ),
                weight=group.expected_rows,
            )
            for group in groups
        ]
        return [GroupCounts.from_json(result) for result in self.work.run("count", "counting", tasks)]

    def clear(self) -> None:
        """Remove the dataset that is being replaced, manifest first."""
        for name in (FILE_NAME, RECORD, "vocabulary", *SPLITS):
            storage.remove(storage.join(self.output, name))

    def fields(self, groups: list[Group], counts: list[GroupCounts], total: GroupCounts) -> tuple[Field, ...]:
        """Vocabularies of the categorical fields, means and deviations of the numeric ones."""
        parts = [
            counting.part_path(self.work.folder("tokens"), group.index, part)
            for group, found in zip(groups, counts, strict=True)
            for part in range(found.parts)
        ]
        names = self.source.categorical
        tasks = [
            Task(
                key=f"field-{index:05d}",
                function=_build_vocabulary,
                arguments=(
                    self.shared_source,
                    name,
                    parts,
                    self.protocol.threshold,
                    total.split_rows[TRAIN],
                    self.output,
                    self._encoder_path(name),
                ),
            )
            for index, name in enumerate(names)
        ]
        cardinality = dict(
            zip(names, self.work.run("vocabulary", "assigning ids", tasks, unit="fields"), strict=True)
        )
        return tuple(
            Field(name=f.name, kind="categorical", cardinality=cardinality[f.name])
            if f.kind == "categorical"
            else Field(
                name=f.name,
                kind="numeric",
                mean=total.sums[f.name].mean(),
                deviation=total.sums[f.name].deviation(),
            )
            for f in self.source.fields
        )

    def _encoder_path(self, name: str) -> str:
        return self.work.folder("encoders", f"{name}.arrow")

    def encode(
        self, groups: list[Group], counts: list[GroupCounts], fields: tuple[Field, ...]
    ) -> list[GroupShards]:
        """The second pass."""
        schema = Schema(label=self.source.label, fields=fields)
        encoders = {name: self._encoder_path(name) for name in self.source.categorical}
        tasks = []
        first_shards = [0] * len(SPLITS)
        for group, found in zip(groups, counts, strict=True):
            tasks.append(
                Task(
                    key=f"group-{group.index:05d}",
                    function=_encode_group,
                    arguments=(
                        self.shared_source,
                        group,
                        self.protocol.split,
                        schema,
                        self.output,
                        encoders,
                        self.protocol.rows_per_shard,
                        found.split_rows,
                        tuple(first_shards),
                    ),
                    weight=found.rows,
                )
            )
            for index, rows in enumerate(found.split_rows):
                first_shards[index] += len(shard_sizes(rows, self.protocol.rows_per_shard))
        return [GroupShards.from_json(result) for result in self.work.run("encode", "encoding", tasks)]

    def finish(
        self, checksums: list[str], total: GroupCounts, fields: tuple[Field, ...], encoded: list[GroupShards]
    ) -> Manifest:
        """Write the manifest, last of all, and remove what is no longer needed."""
        inputs = [files.describe(path) for path in self.source.paths]
        manifest = Manifest(
            location=self.output,
            label=self.source.label,
            fields=fields,
            splits={
                name: tuple(shard for group in encoded for shard in group.shards[name]) for name in SPLITS
            },
            preset=self.protocol.preset,
            seed=self.protocol.seed,
            sources=tuple(
                {"name": file.name, "bytes": file.bytes, "sha256": checksum}
                for file, checksum in zip(inputs, checksums, strict=True)
            ),
            facts={
                **make_facts(self.source, self.protocol, total, encoded),
                **self.source.facts(self.protocol.split),
            },
        )
        storage.write_json(storage.join(self.output, RECORD), self.plan)
        manifest.save()
        self.work.remove()
        for name in ("vocabulary", REJECTED, *SPLITS):
            storage.remove_temporaries(storage.join(self.output, name))
        return manifest


def _count_rows(source: Source, blocks: list[Block]) -> list[int]:
    return [source.count_rows(block) for block in blocks]


def _count_group(*arguments: Any) -> dict[str, Any]:
    return counting.count_group(*arguments).to_json()


def _build_vocabulary(
    source: Source,
    name: str,
    parts: list[str],
    threshold: int,
    training_rows: int,
    dataset: str,
    encoder_path: str,
) -> int:
    return vocabulary.build(
        source,
        name,
        parts,
        threshold=threshold,
        training_rows=training_rows,
        dataset=dataset,
        encoder_path=encoder_path,
    )


def _encode_group(*arguments: Any) -> dict[str, Any]:
    return encode.encode_group(*arguments).to_json()
