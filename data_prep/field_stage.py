"""The stage that builds all fields: one task for several small ones, several for a large one.

A field whose tokens do not fit in memory is cut into ranges of tokens, which takes three waves of
tasks: count the tokens of each range, assign ids to each range and write its map, join the ranges'
ids to one vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray

from afm_dist import storage
from afm_dist.dataset.manifest import Count, Field, Shard
from data_prep import vocabulary
from data_prep.fields import TokenBuilder, add_up, build, write_maps
from data_prep.findings import Findings
from data_prep.sources.source import RawField, Source
from data_prep.split import TRAIN
from data_prep.spool import open_values
from data_prep.transforms import FieldRule
from data_prep.vocabulary import TokenRange
from data_prep.work import Task, WorkDirectory

SAMPLED_PARTS = 32
GROUP_TOKENS = 400_000
FIX = "give --resume never to start anew"


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What a numeric field is scaled by."""

    mean: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class FieldStage:
    """The stage.

    Attributes:
        source: The raw log.
        rules: How each field is made.
        columns: The raw columns that are spooled.
        found: What the parsing found.
        threshold: Smallest count that earns an id of its own.
        dataset: The dataset directory, for the vocabularies.
        work: Where receipts, maps and intermediate files go.
    """

    source: Source
    rules: Sequence[FieldRule]
    columns: list[RawField]
    found: Findings
    threshold: int
    dataset: str
    work: WorkDirectory

    def run(self) -> tuple[tuple[Field, ...], dict[str, Shard], list[list[str]]]:
        """Build the fields.

        Returns:
            The fields with cardinalities, means and deviations; by name the vocabularies; and for each
            field the files of its map from values to ids.
        """
        parts = [part.path for part in self.found.parts]
        training_rows = self.found.split_rows[TRAIN]
        shared_parts = ray.put(parts)
        cut = self._cut_fields(parts)
        groups = group_fields(
            {i: self.found.distinct(rule.column) for i, rule in enumerate(self.rules) if i not in cut}
        )
        tasks = [
            Task(
                key=f"group-{number:05d}",
                function=_build_fields,
                arguments=(
                    self.source,
                    [self.rules[index] for index in group],
                    self.columns,
                    shared_parts,
                    [self._map_path(index, 0) for index in group],
                    self.threshold,
                    self.dataset,
                    training_rows,
                ),
                result=list[dict[str, Any]],
                weight=len(group),
            )
            for number, group in enumerate(groups)
        ]
        results = self._fields_in_ranges(cut, shared_parts, training_rows)
        for group, made in zip(
            groups, self.work.run("vocabulary", "assigning ids", tasks, unit="fields"), strict=True
        ):
            results.update(zip(group, made, strict=True))

        fields, vocabularies, maps = [], {}, []
        for index, rule in enumerate(self.rules):
            place = f"{self.work.path}: the receipt of field {rule.name!r}"
            if rule.kind == "categorical":
                file = storage.as_typed(results[index], Shard, source=place, fix=FIX)
                vocabularies[rule.name] = file
                measured: dict[str, Any] = {"cardinality": file.rows}
            else:
                measured = asdict(storage.as_typed(results[index], Scaling, source=place, fix=FIX))
            fields.append(
                Field(name=rule.name, kind=rule.kind, column=rule.column, transform=rule.spelled, **measured)
            )
            maps.append([self._map_path(index, number) for number in range(len(cut.get(index, [None])))])
        return tuple(fields), vocabularies, maps

    def _cut_fields(self, parts: list[str]) -> dict[int, list[TokenRange]]:
        """The fields whose tokens have to be cut into ranges, by index."""
        cut = {}
        for index, rule in enumerate(self.rules):
            distinct = self.found.distinct(rule.column)
            # Tokens that were made of raw values are few, and not in their order.
            if rule.keeps_tokens and distinct > vocabulary.RANGE_TOKENS:
                sampled = []
                for part in parts[:: -(-len(parts) // SAMPLED_PARTS)]:
                    with open_values(part, self.columns) as values:
                        sampled.append(values[rule.column]["value"])
                cut[index] = vocabulary.cut_into_ranges(distinct, sampled)
        return cut

    def _fields_in_ranges(
        self, cut: dict[int, list[TokenRange]], parts: Any, training_rows: int
    ) -> dict[int, dict[str, Any]]:
        """Vocabularies of the fields that are too large for one task: count, assign, join."""
        pieces = [(index, number) for index, ranges in cut.items() for number in range(len(ranges))]
        if not pieces:
            return {}
        builders = {
            (index, number): TokenBuilder(self.source, self.rules[index], self.threshold, cut[index][number])
            for index, number in pieces
        }
        keys = {piece: f"field-{piece[0]:05d}-{piece[1]:05d}" for piece in pieces}
        counts = {piece: self.work.folder("ranges", f"{key}-counts.arrow") for piece, key in keys.items()}
        ids = {piece: self.work.folder("ranges", f"{key}-ids.arrow") for piece, key in keys.items()}
        counting = [
            Task(
                key=keys[piece],
                function=_count_range,
                arguments=(builders[piece], parts, self.columns, counts[piece]),
                result=list[tuple[Count, Count]],
            )
            for piece in pieces
        ]
        counted = self.work.run("count-ranges", "counting tokens", counting, unit="ranges")
        histograms = dict(zip(pieces, counted, strict=True))
        assigning: list[Task] = []
        for index, ranges in cut.items():
            firsts = vocabulary.first_ids([histograms[index, number] for number in range(len(ranges))])
            assigning.extend(
                Task(
                    key=keys[index, number],
                    function=_assign_range,
                    arguments=(
                        builders[index, number],
                        parts,
                        self.columns,
                        list(first_id.items()),
                        counts[index, number],
                        ids[index, number],
                        self._map_path(index, number),
                    ),
                    result=None,
                )
                for number, first_id in enumerate(firsts)
            )
        self.work.run("assign-ranges", "assigning ids", assigning, unit="ranges")
        joining: list[Task] = []
        for index, ranges in cut.items():
            known = [entry for number in range(len(ranges)) for entry in histograms[index, number]]
            joining.append(
                Task(
                    key=f"field-{index:05d}",
                    function=_join_ranges,
                    arguments=(
                        builders[index, 0],
                        [ids[index, number] for number in range(len(ranges))],
                        self.dataset,
                        training_rows - sum(count * tokens for count, tokens in known),
                    ),
                    result=dict[str, Any],
                )
            )
        joined = self.work.run("join-ranges", "writing vocabularies", joining, unit="fields")
        return dict(zip(cut, joined, strict=True))

    def _map_path(self, field: int, number: int) -> str:
        return self.work.folder("maps", f"field-{field:05d}-{number:05d}.arrow")


def group_fields(distinct: Mapping[int, int]) -> list[list[int]]:
    """Fields that are built by one task, because they have few values together.

    Args:
        distinct: By index of a field, the sum over the parts of its distinct values.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(distinct, key=lambda i: (-distinct[i], i)):
        if not groups or room < distinct[index]:
            groups.append([])
            room = GROUP_TOKENS
        groups[-1].append(index)
        room -= distinct[index]
    return groups


def _build_fields(
    source: Source,
    rules: list[FieldRule],
    columns: list[RawField],
    parts: list[str],
    paths: list[str],
    threshold: int,
    dataset: str,
    training_rows: int,
) -> list[dict[str, Any]]:
    return build(
        source,
        rules,
        columns,
        parts,
        paths,
        threshold=threshold,
        dataset=dataset,
        training_rows=training_rows,
    )


def _count_range(
    builder: TokenBuilder, parts: list[str], columns: list[RawField], path: str
) -> list[list[int]]:
    add_up([builder], parts, columns)
    counted = builder.counted()
    vocabulary.write_counts(counted, path)
    return vocabulary.count_histogram(counted)


def _assign_range(
    builder: TokenBuilder,
    parts: list[str],
    columns: list[RawField],
    first_id: list[tuple[int, int]],
    counts_path: str,
    ids_path: str,
    map_path: str,
) -> None:
    builder.assign(vocabulary.assign_ids(vocabulary.read_counts(counts_path), dict(first_id)))
    write_maps([builder], parts, columns, [map_path])
    vocabulary.write_ids(builder.ids, ids_path)


def _join_ranges(builder: TokenBuilder, paths: list[str], dataset: str, unknown_rows: int) -> dict[str, Any]:
    chunks = vocabulary.merge_ids(paths)
    return asdict(vocabulary.write_vocabulary(builder.rule.name, dataset, chunks, builder.text, unknown_rows))
