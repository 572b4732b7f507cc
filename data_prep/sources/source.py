"""What every raw format has in common: fields, blocks, rows, and rows that had to be rejected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa

from afm_dist import storage
from afm_dist.dataset.manifest import FieldKind
from afm_dist.errors import DataError, OptionError
from afm_dist.runtime import console
from data_prep.columns import Column
from data_prep.sources import files
from data_prep.sources.files import InputFile
from data_prep.sources.forms import NO_FORMS, Forms
from data_prep.split import SplitRule

MAX_NAME_BYTES = 200
SHOWN_CHARACTERS = 40


@dataclass(frozen=True, kw_only=True)
class RawField:
    """One input column of the raw log, in model order.

    Attributes:
        name: Of the column.
        kind: What it is.
        named: Whether the user said so.
    """

    name: str
    kind: FieldKind
    named: bool = False


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of one input file that one worker reads front to back.

    Attributes:
        file: Index of the file among the source's files.
        start: Where the piece begins: byte, row group, or 0 for a whole file.
        end: Where it ends, exclusive.
        expected_rows: Estimate, for planning and progress only.
    """

    file: int
    start: int
    end: int
    expected_rows: int


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that is not what its format says: line number (from 1), reason, raw text."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RawRows:
    """Consecutive rows of one block.

    Attributes:
        labels: (B) uint8, 0 or 1.
        columns: For every field of the source, in order: tokens (``token_type`` of the source) or
            Float64 numbers, null where missing.
        numbers: (B) row number of each row within its file, from 0; rejected rows count too.
        lines: (B) line in the file where each row begins, from 1.
        rejected: The malformed rows among them.
        kept: (B) values of the columns that are carried along as they are.
        forms: How the values of the columns that were inferred are written.
    """

    labels: np.ndarray
    columns: Mapping[str, Column]
    numbers: np.ndarray
    lines: np.ndarray
    rejected: Sequence[Rejected] = ()
    kept: Mapping[str, pa.Array] = field(default_factory=dict)
    forms: Forms = field(default_factory=dict)

    def filter(self, wanted: np.ndarray) -> RawRows:
        """The rows where ``wanted`` (B) is true."""
        return replace(
            self,
            labels=self.labels[wanted],
            columns={name: column.filter(wanted) for name, column in self.columns.items()},
            numbers=self.numbers[wanted],
            lines=self.lines[wanted],
            kept={name: values.filter(pa.array(wanted)) for name, values in self.kept.items()},
        )

    def with_rejected(self, more: Sequence[Rejected]) -> RawRows:
        """The same with more rejected rows, in order of line."""
        return replace(self, rejected=sorted([*self.rejected, *more], key=lambda bad: bad.line))


class SpellingError(DataError):
    """A column whose type cannot spell a token of the vocabulary."""


class Source(ABC):
    """A raw log: its fields and its blocks, both functions of the input alone.

    Attributes:
        kind: Name of the format.
        label: Name of the label column.
        fields: Input columns, in model order.
        inputs: The input files, in order, as they were before anything of them was read.
        token_type: Polars type of the categorical columns that ``read`` yields.
        first_line: Line in the file of row 0.
        kept: Types of the columns that are carried along as they are, by name.
        deciding_columns: Those of them that decide the split, of which files may have other types.
    """

    kind: str
    label: str
    fields: tuple[RawField, ...]
    inputs: tuple[InputFile, ...]
    token_type: pl.DataType
    first_line: int = 1
    kept: Mapping[str, pa.DataType] = MappingProxyType({})
    deciding_columns: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The input files, in order."""
        return tuple(file.path for file in self.inputs)

    @property
    def categorical(self) -> tuple[str, ...]:
        """Names of the categorical fields, in order."""
        return tuple(f.name for f in self.fields if f.kind == "categorical")

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the numeric fields, in order."""
        return tuple(f.name for f in self.fields if f.kind == "numeric")

    @abstractmethod
    def blocks(self) -> list[Block]:
        """The pieces of the input, in order of file and position."""

    @abstractmethod
    def count_rows(self, block: Block) -> int | None:
        """Rows of a block, good or bad: what the next block of the same file starts at.

        None: the file cannot be cut into blocks there, and has to be read as a whole.
        """

    @abstractmethod
    def read(self, block: Block, first_row: int) -> Iterator[RawRows]:
        """The rows of a block in pieces of bounded size; ``first_row`` is its first row's number."""

    def line_of(self, number: int) -> int:
        """Line in its file of a row, from 1."""
        return number + self.first_line

    def token_text(self, tokens: pl.Series) -> pl.Series:
        """Tokens as the text that stands in the raw log; missing becomes the empty text."""
        return tokens.cast(pl.String).fill_null("")

    def tokens_of(self, text: pl.Series) -> pl.Series:
        """The inverse of ``token_text``.

        Raises:
            DataError: a text that is no token of this format.
        """
        return pl.select(pl.when(text != "").then(text)).to_series()

    def describe(self) -> list[str]:
        """One line per column, saying what it is taken for."""
        return []

    def check_tokens(self, column: str, text: pl.Series) -> None:
        """See that a column can hold the tokens of a vocabulary.

        Raises:
            SpellingError: naming the column and a token.
        """
        return

    def check_forms(self, forms: Forms) -> None:
        """See that what was inferred of the columns holds for all rows, of which these are the forms.

        Raises:
            DataError: naming the column, the first value that contradicts, and what to do.
        """
        return

    def facts(self, split_of: SplitRule, forms: Forms = NO_FORMS) -> Mapping[str, Any]:
        """What the source itself knows about the data, for the manifest."""
        return {}

    def deciding(self, split: SplitRule) -> Self:
        """The same source, whose rows carry along the columns that decide the split.

        Raises:
            OptionError: there is no such column, or its type has no order.
        """
        if not split.reads:
            return self
        carrying = copy(self)
        carrying.kept = {**self.kept, **self._deciding_types(split)}
        carrying.deciding_columns = split.reads
        return carrying

    @abstractmethod
    def _deciding_types(self, split: SplitRule) -> dict[str, pa.DataType]:
        """Of the columns that decide the split; raises as above."""

    def identity(self) -> dict[str, Any]:
        """What the rows depend on besides the content of the files."""
        return {
            "source": self.kind,
            "label": self.label,
            "fields": [f"{f.name}:{f.kind}" for f in self.fields],
        }


def open_inputs(
    inputs: Sequence[InputFile], data_start: Callable[[str], int | None], *, may_have_no_rows: bool = False
) -> tuple[InputFile, ...]:
    """The inputs that hold rows; among several, those without any are passed over.

    Args:
        inputs: The files, in order, described before anything of them is read: what replaces one of them
            later is noticed.
        data_start: Bytes before the first row of a file; None: it has no rows.
        may_have_no_rows: Whether a header without rows will do, where no other file has any.

    Raises:
        DataError: none holds a row.
    """
    kept: list[InputFile] = []
    rowless: list[InputFile] = []
    for file in inputs:
        # A compressed file without content has bytes, and so has a byte-order mark.
        empty = not file.bytes or not files.head(file.path, len(files.BYTE_ORDER_MARK) + 1)
        if not empty and data_start(file.path) is not None:
            kept.append(file)
            continue
        what = "the file is empty" if empty else "the file has a header and no rows"
        if not empty and may_have_no_rows:
            rowless.append(file)
        if len(inputs) == 1:
            if rowless:
                break
            raise DataError(f"{file.path}: {what}; check how it was downloaded or exported")
        console.warn(f"{file.path}: {what}; passed over")
    kept = kept or rowless[:1]
    if not kept:
        raise DataError(f"none of the {len(inputs)} input files holds a row; the first is {inputs[0].path}")
    return tuple(kept)


def known_columns(split: SplitRule, names: Sequence[str], label: str) -> tuple[str, ...]:
    """The columns that decide the split, of a log that has some names.

    Raises:
        OptionError: there is no such column, or it is the label.
    """
    others = [name for name in names if name != label]
    for name in split.reads:
        if name not in others:
            raise OptionError(f"--split-column {name}: the log has: {', '.join(others)}")
    return split.reads


def check_field_names(names: Sequence[str], where: str) -> None:
    """Refuse names that cannot be both a column and a file name.

    Raises:
        DataError: naming the column.
    """
    seen: set[str] = set()
    for name in names:
        if not name.strip() or "/" in name or name.startswith(".") or storage.fault_of(f"vocabulary/{name}"):
            shown = repr(name) if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]!r}…"
            raise DataError(f"{where}: column name {shown} cannot name a vocabulary file; rename the column")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise DataError(
                f"{where}: column name {name[:40]!r}… has {len(name.encode())} bytes, more than the "
                f"{MAX_NAME_BYTES} that can name a vocabulary file; rename the column"
            )
        if name in seen:
            raise DataError(f"{where}: two columns are named {name!r}; rename one")
        seen.add(name)


def distinct_names(names: Sequence[str], wanted: Collection[str] | None, where: str) -> list[str]:
    """The names of a table's columns, each once.

    Args:
        names: In order.
        wanted: Those that will be read; the others may be named alike or oddly, and those that repeat are
            told apart by a suffix. None: all are wanted, and have to be names of fields.
        where: The file, for messages.

    Raises:
        DataError: naming the column.
    """
    if wanted is None:
        check_field_names(names, where)
        return list(names)
    distinct: list[str] = []
    taken = set(names)
    for position, name in enumerate(names, start=1):
        known = name
        if name in names[: position - 1]:
            if name in wanted:
                raise DataError(f"{where}: two columns are named {name!r}; rename one")
            known = f"{name} (column {position})"
            while known in taken:
                known += "'"
            taken.add(known)
        distinct.append(known)
    return distinct
