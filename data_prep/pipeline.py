"""Raw log to dataset directory: parse, assign ids, encode; out of core, restartable, exact.

1. *scan*: lines per block, since a row's number decides its split;
2. *parse*: one task per block reads the text and spools its columns and their counts;
3. *vocabulary*: one task per field, or per range of its tokens, adds up the counts and assigns ids;
4. *encode*: one task per shard turns spooled codes into ids;
5. *shuffle*: the training rows, encoded in runs instead, are gathered into shards in random order.

Shards and ids are functions of the input, the options and the seed: the same bits for any number
of workers and any size of blocks, and after any interruption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import ray

from afm_dist import storage
from afm_dist.dataset.manifest import FILE_NAME, Field, Manifest, Shard
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import cluster, console
from afm_dist.runtime.resources import CPU_EACH, CpuOptions, TaskResources
from data_prep import parse
from data_prep.encode import FEW_VALUES, Encoding
from data_prep.encode_stage import EncodeStage
from data_prep.field_stage import FieldStage
from data_prep.findings import Findings, check_rejected, check_split, check_vocabulary, make_facts
from data_prep.ownership import PAGE, RECORD, REJECTED, VOCABULARY
from data_prep.parse import BlockReceipt, Parsing
from data_prep.plan import (
    ROW_ORDER,
    check_output,
    check_replaced,
    check_unchanged,
    make_plan,
    unfinished,
    why_prepare,
)
from data_prep.protocol import Protocol
from data_prep.scan import scan
from data_prep.sources import files
from data_prep.sources.source import Block, Source, check_field_names
from data_prep.split import SPLITS, SplitRule
from data_prep.transforms import FieldRule
from data_prep.work import FOLDER, Task, Usage, WorkDirectory

__all__ = ["Protocol", "prepare"]


def prepare(
    source: Source,
    output: str,
    protocol: Protocol,
    *,
    resume: Literal["auto", "never"] = "auto",
    overwrite: bool = False,
    usage: Usage | None = None,
    emit: Emit = no_events,
    options: CpuOptions = CPU_EACH,
) -> Manifest:
    """Prepare a raw log, or return the manifest that is already there.

    Args:
        source: The raw log.
        output: The dataset directory to make.
        protocol: Split, threshold and the rest.
        resume: ``auto`` goes on after an interruption, ``never`` starts anew.
        overwrite: Whether a finished dataset of other inputs may be replaced.
        usage: Where to note what the workers needed.
        emit: Gets the events of lost tasks, e.g. ``Run.event``.
        options: What each task gets of the cluster.

    Raises:
        DataError: the log is not what its format says.
        OptionError: ``output`` holds something else, or the protocol does not fit the log.
    """
    output = storage.absolute(output)
    check_output(output, source.paths)
    check_replaced(output, source.kind, source.inputs, overwrite=overwrite)
    rules, split = protocol.rules(source.fields), protocol.split(len(source.paths))
    source = source.deciding(split)
    check_field_names([source.label, *(rule.name for rule in rules)], f"preset {protocol.preset}")
    plan = make_plan(source, protocol)
    reason = why_prepare(output, plan)
    # Receipts are of blocks: they are of no use to a run with others.
    blocks = storage.fingerprint([asdict(block) for block in source.blocks()])
    begun = {**unfinished(plan), "blocks": blocks}
    work = WorkDirectory(
        storage.join(output, FOLDER),
        begun,
        keep=resume == "auto",
        usage=usage or Usage(),
        resources=TaskResources(cpus=options.task_cpus),
        emit=emit,
    )
    if reason is None and resume == "auto":
        work.remove()
        console.info(f"{output}: up to date")
        return Manifest.load(output)
    how = "interrupted before, going on" if work.resumed else reason or "again: --resume never"
    console.info(f"preparing {output} ({how})")
    work.begin()
    cluster.ensure_ray()
    return _Preparation(source, output, protocol, rules, split, plan, work).run()


class _Preparation:
    """The stages, in order; each reads what the one before returned."""

    def __init__(
        self,
        source: Source,
        output: str,
        protocol: Protocol,
        rules: tuple[FieldRule, ...],
        split: SplitRule,
        plan: dict[str, Any],
        work: WorkDirectory,
    ) -> None:
        self.source = source
        self.output = output
        self.protocol = protocol
        self.rules = rules
        self.split = split
        self.plan = plan
        self.work = work

    def run(self) -> Manifest:
        checksums, found = self.parse(scan(self.source, self.work))
        check_rejected(self.source, found, self.protocol, storage.join(self.output, REJECTED))
        self.source.check_forms(found.forms)
        check_split(self.protocol, found)
        self.work.once("clear", self.clear)
        fields, vocabularies, maps = self.fields(found)
        check_vocabulary(fields, self.protocol)
        shards, unknown = self.encode(found, fields, maps)
        return self.finish(checksums, found, fields, vocabularies, shards, unknown)

    def parse(self, blocks: Sequence[tuple[Block, int]]) -> tuple[list[str], Findings]:
        """Read the text; returns the SHA-256 of each input, and what was found."""
        rejected = storage.join(self.output, REJECTED)
        self.work.once("clear-rejected", lambda: storage.remove(rejected))
        parsing = ray.put(
            Parsing(
                source=self.source,
                split=self.split,
                rules=self.rules,
                spool=self.work.folder("spool"),
                rejected=rejected,
                max_rejected=parse.most_rejected([block for block, _ in blocks], self.protocol.max_bad_rows),
            )
        )
        # A checksum cannot be shared out among workers: it is begun first.
        checksums = [
            Task(key=f"file-{index:05d}", function=files.sha256, arguments=(path,), result=str, weight=0)
            for index, path in enumerate(self.source.paths)
        ]
        tasks = [
            Task(
                key=f"block-{index:05d}",
                function=_parse_block,
                arguments=(parsing, index, block, first_row),
                result=BlockReceipt,
                weight=block.expected_rows,
            )
            for index, (block, first_row) in enumerate(blocks)
        ]
        results = self.work.run("parse", "parsing", [*checksums, *tasks])
        n_files = len(self.source.paths)
        spool = self.work.folder("spool")
        receipts = [
            receipt.within(spool, source=self.work.receipt("parse", task.key))
            for receipt, task in zip(results[n_files:], tasks, strict=True)
        ]
        return results[:n_files], Findings.of(receipts)

    def clear(self) -> None:
        """Remove the dataset that is being replaced, manifest first.

        Raises:
            OptionError: somebody has put files of their own into it meanwhile.
        """
        check_output(self.output)
        for name in (FILE_NAME, RECORD, PAGE, VOCABULARY, *SPLITS):
            storage.remove(storage.join(self.output, name))

    def fields(self, found: Findings) -> tuple[tuple[Field, ...], dict[str, Shard], list[list[str]]]:
        """Fields with cardinalities, means and deviations; vocabularies; and maps from values to ids."""
        wanted = {rule.column for rule in self.rules}
        stage = FieldStage(
            source=self.source,
            rules=self.rules,
            columns=[column for column in self.source.fields if column.name in wanted],
            found=found,
            threshold=self.protocol.threshold,
            dataset=self.output,
            work=self.work,
        )
        return stage.run()

    def encode(
        self, found: Findings, fields: tuple[Field, ...], maps: list[list[str]]
    ) -> tuple[dict[str, list[Shard]], dict[str, Counter[str]]]:
        """Write the shards; returns them, and how many held-out rows of each field have id 0."""
        stage = EncodeStage(
            encoding=Encoding(
                label=self.source.label,
                rules=self.rules,
                parts=[part.path for part in found.parts],
                small=[f.name for f in fields if f.kind == "categorical" and f.cardinality <= FEW_VALUES],
                maps=maps,
                dataset=self.output,
            ),
            split_rows=[[part.split_rows[split] for part in found.parts] for split in range(len(SPLITS))],
            rows_per_shard=self.protocol.rows_per_shard,
            seed=self.protocol.seed,
            work=self.work,
        )
        return stage.run()

    def finish(
        self,
        checksums: list[str],
        found: Findings,
        fields: tuple[Field, ...],
        vocabularies: dict[str, Shard],
        shards: dict[str, list[Shard]],
        unknown: dict[str, Counter[str]],
    ) -> Manifest:
        """Write the manifest, last of all, and remove what is no longer needed."""
        check_unchanged(self.source, self.plan)
        manifest = Manifest(
            location=self.output,
            label=self.source.label,
            fields=fields,
            splits={name: tuple(of_split) for name, of_split in shards.items()},
            vocabulary=vocabularies,
            preset=self.protocol.preset,
            seed=self.protocol.seed,
            row_order=ROW_ORDER,
            sources=tuple(
                {"name": file.name, "bytes": file.bytes, "sha256": checksum}
                for file, checksum in zip(self.source.inputs, checksums, strict=True)
            ),
            facts={
                **make_facts(self.source, self.protocol, self.rules, found, unknown),
                **self.source.facts(self.split, found.forms),
            },
        )
        # What the receipts say.
        storage.check_inside(self.output, (file.path for file in manifest.files), source=self.work.path)
        storage.write_json(storage.join(self.output, RECORD), self.plan)
        manifest.save()
        self.work.remove()
        for name in (VOCABULARY, REJECTED, *SPLITS):
            storage.remove_temporaries(storage.join(self.output, name))
        return manifest


def _parse_block(parsing: Parsing, index: int, block: Block, first_row: int) -> dict[str, Any]:
    return parse.parse_block(parsing, index, block, first_row).to_json()
