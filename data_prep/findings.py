"""What the parsing found: facts for the manifest, and reasons to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afm_dist.dataset.labels import Labels, warn_of_dataset
from afm_dist.dataset.manifest import Field
from afm_dist.errors import DataError
from afm_dist.runtime import console
from data_prep import parse
from data_prep.parse import BlockReceipt
from data_prep.protocol import Protocol
from data_prep.rejected import REJECTED_SHOWN
from data_prep.sources.forms import Forms, merged
from data_prep.sources.source import Source
from data_prep.split import SPLITS, TRAIN
from data_prep.split_seen import ColumnRange
from data_prep.spool import SpooledPart
from data_prep.transforms import FieldRule


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All blocks together.

    Attributes:
        parts: The spooled parts, in order of the input.
        rejected: Number of malformed rows.
        offenders: The first of them, as ``file:line reason``.
        forms: How the values of the columns that were inferred are written.
        seen: What the column that decides the split held.
    """

    parts: Sequence[SpooledPart]
    rejected: int
    offenders: Sequence[str]
    forms: Forms
    seen: ColumnRange

    @classmethod
    def of(cls, receipts: Iterable[BlockReceipt]) -> Findings:
        """From the receipts of the blocks, in order."""
        known = list(receipts)
        offenders = [offender for receipt in known for offender in receipt.offenders]
        return cls(
            parts=[part for receipt in known for part in receipt.parts],
            rejected=sum(receipt.rejected for receipt in known),
            offenders=offenders[:REJECTED_SHOWN],
            forms=merged(receipt.forms for receipt in known),
            seen=ColumnRange.merged(receipt.seen for receipt in known),
        )

    @property
    def split_rows(self) -> list[int]:
        """Good rows per split."""
        return [sum(part.split_rows[split] for part in self.parts) for split in range(len(SPLITS))]

    @property
    def positives(self) -> list[int]:
        """Rows with label 1 per split."""
        return [sum(part.positives[split] for part in self.parts) for split in range(len(SPLITS))]

    @property
    def rows(self) -> int:
        """Good rows."""
        return sum(self.split_rows)

    def distinct(self, column: str) -> int:
        """Sum over the parts of a column's distinct values."""
        return sum(part.distinct[column] for part in self.parts)

    def missing(self, column: str) -> int:
        """Rows without a value in a column."""
        return sum(part.missing[column] for part in self.parts)


def make_facts(
    source: Source,
    protocol: Protocol,
    rules: Sequence[FieldRule],
    found: Findings,
    unknown: Mapping[str, Counter[str]],
) -> dict[str, Any]:
    """Row counts, label rates, missing and unknown shares."""
    unknown_share = {
        name: {
            rule.name: round(unknown[name][rule.name] / found.split_rows[index], 6)
            for rule in rules
            if rule.kind == "categorical"
        }
        for index, name in enumerate(SPLITS)
        if index != TRAIN and found.split_rows[index]
    }
    return {
        "source": source.kind,
        "threshold": protocol.threshold,
        "rows_read": found.rows + found.rejected,
        "rows_rejected": found.rejected,
        "splits": {
            name: {"rows": found.split_rows[i], "positives": found.positives[i]}
            for i, name in enumerate(SPLITS)
        },
        "missing_share": {rule.name: round(found.missing(rule.column) / found.rows, 6) for rule in rules},
        "unknown_share": unknown_share,
    }


def check_rejected(source: Source, found: Findings, protocol: Protocol, rejected: str) -> None:
    """Stop when too many rows are malformed, or none is left to train on.

    Raises:
        DataError: naming the first offenders.
    """
    read = found.rows + found.rejected
    if found.rows == 0:
        if found.rejected == 0:
            raise DataError(f"{source.paths[0]}: there are no rows")
        raise DataError(
            f"{parse.all_rejected(source.label, found.rejected, found.offenders)}; see {rejected}"
        )
    if found.rejected > protocol.max_bad_rows * read:
        first = "; ".join(found.offenders)
        raise DataError(
            f"{found.rejected:,} of {read:,} rows are malformed, more than --max-bad-rows "
            f"{protocol.max_bad_rows:g} allows; the first: {first}; all are in {rejected}"
        )
    if found.rejected:
        console.warn(f"{found.rejected:,} of {read:,} rows are malformed and left out; see {rejected}")
    if found.split_rows[TRAIN] == 0:
        seen, column = found.seen, protocol.split_column
        why = "there are too few"
        if column is not None:
            why = f"column {column!r} holds values from {seen.least} to {seen.most}"
        raise DataError(f"none of the {found.rows} rows fell into the training split; {why}")
    warn_of_dataset(
        [
            Labels.counted(name, rows, positives)
            for name, rows, positives in zip(SPLITS, found.split_rows, found.positives, strict=True)
        ]
    )


def check_split(protocol: Protocol, found: Findings) -> None:
    """Stop where the column that decides the split has no one order, or holds nothing out.

    Raises:
        DataError: naming the column, and its values.
    """
    column, seen = protocol.split_column, found.seen
    if column is None:
        return
    if len(seen.zones) > 1:
        (zone, one), (other_zone, other) = list(seen.zones.items())[:2]
        raise DataError(
            f"--split-column {column}: its times have several time zones: {one} has {zone}, {other} "
            f"{other_zone}; write the first values of the splits with a time zone, such as "
            "2024-04-11T00:00+00:00, and the times without one with theirs"
        )
    starts = {"validation": protocol.validation_from, "test": protocol.test_from}
    for name, rows in zip(SPLITS, found.split_rows, strict=True):
        start = starts.get(name)
        if rows == 0 and start is not None:
            raise DataError(
                f"--{name}-from {start}: no row falls into the {name} split; column {column!r} holds values "
                f"from {seen.least} to {seen.most}"
            )


def check_vocabulary(fields: Sequence[Field], protocol: Protocol) -> None:
    """Warn of fields that cannot teach a model anything."""
    empty = [f.name for f in fields if f.kind == "categorical" and f.cardinality == 1]
    if empty:
        console.warn(
            f"every token of {', '.join(empty)} occurs fewer than {protocol.threshold} times in the training "
            "split and is unknown to the model; lower --threshold, or drop the column"
        )
