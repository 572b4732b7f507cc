"""The raw text is parsed once: a block of it becomes spooled parts and rejected rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from afm_dist import storage
from afm_dist.errors import DataError
from data_prep.rejected import RejectedRows
from data_prep.sources.forms import Example, Form, merged
from data_prep.sources.source import Block, RawRows, Rejected, Source
from data_prep.split import NOWHERE, Placement, RowsToPlace, SplitRule
from data_prep.split_seen import ColumnRange
from data_prep.spool import SpooledPart, write_part
from data_prep.transforms import FieldRule

HOPELESS_ROWS = 100_000


@dataclass(kw_only=True)
class BlockReceipt:
    """What a block held.

    Attributes:
        parts: The good rows, spooled.
        rejected: Number of malformed rows.
        offenders: The first of them, as ``file:line reason``.
        forms: How the values of the columns that were inferred are written.
        seen: What the column that decides the split held.
    """

    parts: list[SpooledPart] = field(default_factory=list)
    rejected: int = 0
    offenders: list[str] = field(default_factory=list)
    forms: dict[str, dict[Form, Example]] = field(default_factory=dict)
    seen: ColumnRange = field(default_factory=ColumnRange)

    def to_json(self) -> dict[str, Any]:
        """Plain values; parts by their names in the spool."""
        content = asdict(self)
        for part in content["parts"]:
            part["path"] = part["path"].rpartition("/")[2]
        return content

    def within(self, spool: str, *, source: str) -> BlockReceipt:
        """The same with the places of its parts instead of their names.

        Args:
            spool: Folder of the parts.
            source: Where the receipt was found, for messages.

        Raises:
            DataError: a part is not in the spool.
        """
        storage.check_inside(spool, (part.path for part in self.parts), source=source)
        return replace(
            self, parts=[replace(part, path=storage.join(spool, part.path)) for part in self.parts]
        )


@dataclass(frozen=True, kw_only=True)
class Parsing:
    """What the parsing of every block has in common.

    Attributes:
        source: The raw log.
        split: Assigns rows to splits.
        rules: How fields are made of columns.
        spool: Folder of the parts.
        rejected: Folder of the malformed rows.
        max_rejected: A block with more of them ends the job at once.
    """

    source: Source
    split: SplitRule
    rules: tuple[FieldRule, ...]
    spool: str
    rejected: str
    max_rejected: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that become fields, in order of the source."""
        wanted = {rule.column for rule in self.rules}
        return tuple(f.name for f in self.source.fields if f.name in wanted)


def parse_block(parsing: Parsing, index: int, block: Block, first_row: int) -> BlockReceipt:
    """Parse one block in bounded memory.

    Args:
        parsing: What to do.
        index: Of the block, for the names of its parts.
        block: The piece of the input.
        first_row: Number of its first row within its file.

    Raises:
        DataError: the first 100,000 rows are malformed without exception, or more rows than the
            whole input may hold.
    """
    source = parsing.source
    path = source.paths[block.file]
    kinds = {f.name: f.kind for f in source.fields}
    receipt = BlockReceipt()
    rejects = RejectedRows(parsing.rejected, index, path)
    for raw in source.read(block, first_row):
        receipt.forms = merged([receipt.forms, raw.forms])
        rows, placed = _placed(checked(raw, source, parsing.rules), parsing.split, block.file)
        receipt.seen = ColumnRange.merged([receipt.seen, placed.seen.at(path)])
        rejects.take(rows.rejected)
        if receipt.parts or len(rows.labels):
            rejects.check(parsing.max_rejected)
        if not len(rows.labels):
            if not receipt.parts and rejects.count >= HOPELESS_ROWS:
                raise DataError(all_rejected(source.label, rejects.count, rejects.offenders))
            continue
        receipt.parts.append(
            write_part(
                storage.join(parsing.spool, f"block-{index:05d}-{len(receipt.parts):04d}"),
                rows.labels,
                {name: rows.columns[name] for name in parsing.columns},
                kinds,
                placed.splits,
            )
        )
    rejects.flush()
    receipt.rejected, receipt.offenders = rejects.count, rejects.offenders
    return receipt


def most_rejected(blocks: Sequence[Block], max_bad_rows: float) -> int:
    """More malformed rows than a whole log may have, however rough the estimate of its rows."""
    if max_bad_rows == 1:
        return sys.maxsize
    rows = sum(block.expected_rows for block in blocks)
    return max(HOPELESS_ROWS, round(2 * rows * max_bad_rows))


def checked(rows: RawRows, source: Source, rules: Sequence[FieldRule]) -> RawRows:
    """Without the rows whose time cannot be read."""
    for rule in rules:
        if not rule.timed:
            continue
        wrong = _unread(rows, rule, source)
        if not wrong.any():
            continue
        name, column = rule.column, rows.columns[rule.column]
        good = ~wrong.to_numpy()[column.codes]
        what = f"is not a time as {rule.time_format} describes"
        rejected = [
            Rejected(
                line=int(rows.lines[row]),
                reason=f"{name}{_show(column.values[int(column.codes[row])], source)} {what}",
                text="",
            )
            for row in np.flatnonzero(~good)
        ]
        rows = rows.filter(good).with_rejected(rejected)
    return rows


def _placed(rows: RawRows, split: SplitRule, file: int) -> tuple[RawRows, Placement]:
    """Without the rows that no split can take, and where the others go."""
    placed = split.place(file, RowsToPlace(numbers=rows.numbers, lines=rows.lines, kept=rows.kept))
    good = placed.splits != NOWHERE
    if good.all():
        return rows, placed
    rejected = [
        Rejected(line=int(rows.lines[row]), reason=placed.reason(int(row)), text="")
        for row in np.flatnonzero(~good)
    ]
    return rows.filter(good).with_rejected(rejected), replace(placed, splits=placed.splits[good])


def _unread(rows: RawRows, rule: FieldRule, source: Source) -> pl.Series:
    values = rows.columns[rule.column].values
    return values.is_not_null() & rule.apply(source.token_text(values)).is_null()


def _show(value: object, source: Source) -> str:
    if value is None:
        return ""
    return f" {source.token_text(pl.Series([value], dtype=source.token_type))[0]!r}"


def all_rejected(label: str, rejected: int, offenders: Sequence[str]) -> str:
    """What to say when not one row is good."""
    first = "; ".join(offenders)
    rows = f"{rejected:,} rows"
    labels = [offender.partition(" label ")[2] for offender in offenders]
    if all(labels):
        shown = ", ".join(sorted({text.removesuffix(" is not 0 or 1") for text in labels}))
        return (
            f"not one of {rows} has a label of 0 or 1: column '{label}' holds {shown}; "
            f"write 1 for a click and 0 for none, or name another column with --label ({first})"
        )
    return f"every one of {rows} is malformed; the first: {first}"
