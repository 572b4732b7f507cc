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
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ray

from afm_dist import __version__, cluster, console, storage
from afm_dist.dataset.manifest import FILE_NAME, Field, Manifest
from afm_dist.errors import DataError, OptionError
from data_prep import counting, encode, vocabulary
from data_prep.counting import GroupCounts
from data_prep.encode import GroupShards, Schema
from data_prep.groups import Group, plan_groups, shard_sizes
from data_prep.sources import files
from data_prep.sources.source import Block, Source
from data_prep.split import SPLITS, TRAIN, SplitRule
from data_prep.work import FOLDER, Task, WorkDirectory

RECORD = "prepare.json"
REJECTED = "rejected"
RAW = "raw"
OWN_NAMES = (FILE_NAME, RECORD, REJECTED, RAW, FOLDER, "vocabulary", *SPLITS)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How raw rows become a dataset.

    Attributes:
        seed: Decides the split.
        threshold: Tokens counted fewer times in the training split become id 0.
        validation_share: Share of the rows in ``validation``.
        test_share: Share of the rows in ``test``.
        rows_per_shard: Largest number of rows of a shard.
        max_bad_rows: Largest tolerated share of malformed rows.
        preset: Name under which the manifest records these choices.
    """

    seed: int = 0
    threshold: int = 2
    validation_share: float = 0.1
    test_share: float = 0.1
    rows_per_shard: int = 100_000
    max_bad_rows: float = 0.001
    preset: str = "default"

    def __post_init__(self) -> None:
        if self.threshold < 1:
            raise OptionError(f"--threshold {self.threshold}: must be 1 (keep every token) or more")
        if self.rows_per_shard < 1:
            raise OptionError(f"--rows-per-shard {self.rows_per_shard}: must be at least 1")
        for option, share in (
            ("--validation-share", self.validation_share),
            ("--test-share", self.test_share),
            ("--max-bad-rows", self.max_bad_rows),
        ):
            if not 0 <= share <= 1:
                raise OptionError(f"{option} {share}: must be a share between 0 and 1")
        if self.validation_share + self.test_share >= 1:
            raise OptionError(
                f"--validation-share {self.validation_share} and --test-share {self.test_share} leave "
                "nothing to train on; their sum must be below 1"
            )

    @property
    def split(self) -> SplitRule:
        """The rule that assigns rows to splits."""
        return SplitRule(seed=self.seed, validation_share=self.validation_share, test_share=self.test_share)


def make_plan(source: Source, protocol: Protocol) -> dict[str, Any]:
    """Everything the dataset depends on, cheap to compute: what decides whether to redo it."""
    return {
        "version": __version__,
        **source.identity(),
        **asdict(protocol),
        "inputs": [asdict(files.describe(path)) for path in source.paths],
    }


def why_prepare(output: str, plan: dict[str, Any]) -> str | None:
    """The reason to prepare, in words; None when the dataset is up to date."""
    if not storage.exists(storage.join(output, FILE_NAME)):
        return "interrupted before, going on" if storage.exists(storage.join(output, FOLDER)) else "new"
    record = storage.join(output, RECORD)
    if not storage.exists(record):
        return f"again: {RECORD} is missing"
    before = storage.read_json(record)
    changes = [
        "the input changed" if key == "inputs" else f"{key} {before.get(key)} -> {plan.get(key)}"
        for key in sorted({*before, *plan})
        if before.get(key) != plan.get(key)
    ]
    if changes:
        return "again: " + "; ".join(changes)
    for name, shards in Manifest.load(output).splits.items():
        present = set(storage.list_names(storage.join(output, name)))
        for shard in shards:
            if shard.path.rpartition("/")[2] not in present:
                return f"again: {shard.path} is missing"
    return None


def check_output(output: str) -> None:
    """Refuse to write among files that are not a dataset's.

    Raises:
        OptionError: the folder holds something else.
    """
    foreign = [name for name in storage.list_names(output) if name not in OWN_NAMES]
    if foreign:
        raise OptionError(
            f"--output {output}: the folder holds other files ({', '.join(foreign[:3])}); name a new one"
        )


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
        for name in SPLITS:
            storage.remove_temporaries(storage.join(self.output, name))
        return manifest


def make_facts(
    source: Source, protocol: Protocol, total: GroupCounts, encoded: list[GroupShards]
) -> dict[str, Any]:
    """Row counts, label rates, missing and unknown shares."""
    unknown: dict[str, dict[str, float]] = {}
    for index, name in enumerate(SPLITS):
        rows = total.split_rows[index]
        if index == TRAIN or not rows:
            continue
        unknown[name] = {
            field: round(sum(group.unknown[name][field] for group in encoded) / rows, 6)
            for field in source.categorical
        }
    return {
        "source": source.kind,
        "threshold": protocol.threshold,
        "rows_read": total.rows + total.rejected,
        "rows_rejected": total.rejected,
        "splits": {
            name: {"rows": total.split_rows[i], "positives": total.positives[i]}
            for i, name in enumerate(SPLITS)
        },
        "missing_share": {f.name: round(total.missing[f.name] / total.rows, 6) for f in source.fields},
        "unknown_share": unknown,
    }


def check_rejected(source: Source, total: GroupCounts, protocol: Protocol, rejected: str) -> None:
    """Stop when too many rows are malformed, or none is left to train on.

    Raises:
        DataError: naming the first offenders.
    """
    read = total.rows + total.rejected
    if total.rows == 0:
        if total.rejected == 0:
            raise DataError(f"{source.paths[0]}: there are no rows")
        raise DataError(f"{counting.all_rejected(source.label, total)}; see {rejected}")
    if total.rejected > protocol.max_bad_rows * read:
        first = "; ".join(total.offenders)
        raise DataError(
            f"{total.rejected:,} of {read:,} rows are malformed, more than --max-bad-rows "
            f"{protocol.max_bad_rows:g} allows; the first: {first}; all are in {rejected}"
        )
    if total.rejected:
        console.warn(f"{total.rejected:,} of {read:,} rows are malformed and left out; see {rejected}")
    if total.split_rows[TRAIN] == 0:
        raise DataError(f"none of the {total.rows} rows fell into the training split; there are too few")
    for index, name in enumerate(SPLITS):
        rows, positives = total.split_rows[index], total.positives[index]
        if rows and positives in (0, rows):
            console.warn(f"split '{name}' has only labels {int(positives > 0)} ({rows:,} rows)")


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
