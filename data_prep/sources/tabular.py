"""Tables with a header, CSV or Parquet, whose columns the user names or lets infer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from afm_dist import storage
from afm_dist.errors import DataError, OptionError
from data_prep.sources import files
from data_prep.sources.csv_lines import header_and_rest
from data_prep.sources.csv_table import CsvTable, content_of
from data_prep.sources.file_formats import PARQUET_MAGIC
from data_prep.sources.forms import NO_FORMS, Forms, Integers, merged, not_plain
from data_prep.sources.kind_check import check_kinds, warn_of_lost_digits
from data_prep.sources.parquet_table import ParquetTable, is_string
from data_prep.sources.source import (
    Block,
    RawField,
    RawRows,
    Source,
    SpellingError,
    known_columns,
    open_inputs,
)
from data_prep.sources.tabular_columns import (
    ColumnOptions,
    Content,
    RawColumn,
    check_options,
    choose_columns,
    listed,
)
from data_prep.sources.tabular_rows import Reading
from data_prep.split import SplitRule

BLOCK_BYTES = 32 << 20

Table = CsvTable | ParquetTable
CHECKED_BYTES = 1 << 16
NUMBERS_AS_TEXT = "numbers as text"
INTEGERS: Mapping[str, Integers] = {NUMBERS_AS_TEXT: "as text", "integer": "as numbers"}


class TabularSource(Source):
    """CSV (plain, gzip or zstd; comma or tab separated) or Parquet files with equal columns, of those read.

    Args:
        paths: The files, in order, all of one format.
        columns: Label, and what the user says about the other columns.
        block_bytes: Bytes per block of a plain CSV file.

    Raises:
        DataError: a file is absent, empty, holds a header only, or is not a table.
        OptionError: a column named by an option is not there, or one to be kept has several types.
    """

    kind = "tabular"
    token_type: pl.DataType = pl.String()
    spellings: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, paths: Sequence[str], columns: ColumnOptions, *, block_bytes: int = BLOCK_BYTES
    ) -> None:
        self.label = columns.label or ""
        data_start = partial(_data_start, wanted=columns.wanted)
        described = [files.describe(path) for path in paths]
        self.inputs = open_inputs(described, data_start, may_have_no_rows=columns.only_named)
        self.block_bytes = block_bytes
        self._tables: list[Table] = [_open(path, columns.wanted) for path in self.paths]
        self.first_line = self._tables[0].first_line
        first = self._tables[0]
        for other in self._tables[1:]:
            if other.format != first.format:
                raise DataError(
                    f"{other.path}: the file is {other.format}, but {first.path} is {first.format}; "
                    "convert all to one format"
                )
            if columns.only_named:
                check_options(other.names, columns, other.path)
            elif other.names != first.names:
                raise DataError(
                    f"{other.path}: its columns ({listed(other.names)}) are not those of {first.path} "
                    f"({listed(first.names)})"
                )
        # A file may lack the values, and so the type, of a column that others have.
        typed = {
            name: next((t for t in self._tables if t.contents.get(name, "empty") != "empty"), first)
            for name in first.names
        }
        types = {name: table.types[name] for name, table in typed.items()}
        contents = {name: table.contents[name] for name, table in typed.items()}
        # What the first rows of all CSV files hold, in whatever order these come.
        self._first_forms = merged(table.forms for table in self._tables)
        contents |= {name: content_of(self._first_forms[name]) for name in types if name in self._first_forms}
        self.columns = choose_columns(contents, types, columns, first.path)
        for column in self.columns:
            if column.kind is not None or column.name == columns.label:
                _check_types(column, typed[column.name], self._tables)
        check_kinds(self.columns, self._first_numbers)
        self.fields = tuple(
            RawField(name=c.name, kind=c.kind, named=c.named) for c in self.columns if c.kind is not None
        )
        self.spellings = {
            name: self._spelling(name, contents[name], typed[name]) for name in self.categorical
        }
        self._readings = [self._reading(raw, contents[raw.name], columns.spellings) for raw in self.fields]
        self.kept = {name: typed[name].type_of(name) for name in columns.kept}
        for name, kind in self.kept.items():
            _check_kept(name, kind, typed[name], self._tables)

    def _deciding_types(self, split: SplitRule) -> dict[str, pa.DataType]:
        """Those of the first file; each file's values are read as what they are."""
        names = known_columns(split, self._tables[0].names, self.label)
        for name in names:
            for table in self._tables:
                split.check_type(name, table.type_of(name), table.path)
        return {name: self._tables[0].type_of(name) for name in names}

    @property
    def _first_numbers(self) -> Forms:
        """How the first values are written of the columns that hold no text among them."""
        return {name: found for name, found in self._first_forms.items() if "text" not in found}

    def _spelling(self, name: str, content: Content, table: Table) -> str:
        """How the tokens of a column are spelled."""
        if content == "empty":
            return "empty"
        is_text = name not in self._first_forms or "text" in self._first_forms[name]
        return table.spellings[name] if is_text else NUMBERS_AS_TEXT

    def _reading(self, raw: RawField, content: Content, trained: Mapping[str, str]) -> Reading:
        """How a field is read."""
        found = self._first_forms.get(raw.name)
        watched: Literal["none", "large", "all"] = "none"
        if raw.kind == "numeric":
            if not raw.named and content == "decimals":
                watched = "large" if found and "fraction" in found else "all"
        elif found is not None and "text" not in found and not trained:
            watched = "all"
        spelling = trained.get(raw.name, self.spellings.get(raw.name, ""))
        integers = INTEGERS.get(spelling, "as written")
        if found is not None and spelling == "empty":
            integers = "as text"
        return Reading(field=raw, integers=integers, watched=watched)

    def blocks(self) -> list[Block]:
        """Row groups of Parquet files, byte ranges of plain CSV files, whole compressed ones."""
        return [
            Block(file=index, start=start, end=end, expected_rows=rows)
            for index, table in enumerate(self._tables)
            for start, end, rows in table.ranges(self.block_bytes)
        ]

    def count_rows(self, block: Block) -> int | None:
        """Rows of the block; None for a CSV file with quotes, which is read as a whole."""
        return self._tables[block.file].count_rows(block.start, block.end)

    def read(self, block: Block, first_row: int) -> Iterator[RawRows]:
        """Convert a block batch by batch."""
        table, label = self._tables[block.file], self.label or None
        kept = {
            name: table.type_of(name) if name in self.deciding_columns else kind
            for name, kind in self.kept.items()
        }
        return table.read(block.start, block.end, first_row, label, self._readings, kept)

    def check_forms(self, forms: Forms) -> None:
        """See that what the first rows of a column showed holds for all.

        Raises:
            DataError: naming the column, the first value that contradicts, and what to do.
        """
        found = merged([self._first_numbers, forms])
        check_kinds(self.columns, found)
        warn_of_lost_digits(self.columns, found)

    def facts(self, split_of: SplitRule, forms: Forms = NO_FORMS) -> Mapping[str, Any]:
        """How the tokens of each column are spelled: equal values of other types may be other tokens."""
        later = {name for name, found in forms.items() if found.keys() - {"blank"}}
        spelled = {
            name: NUMBERS_AS_TEXT if spelling == "empty" and name in later else spelling
            for name, spelling in self.spellings.items()
        }
        return {"spellings": spelled}

    def check_tokens(self, column: str, text: pl.Series) -> None:
        """See that a column can hold the tokens of a vocabulary: an integer is never ``007``.

        Raises:
            SpellingError: naming the column and a token.
        """
        if self.spellings.get(column) == "integer" and (odd := not_plain(text)) is not None:
            raise SpellingError(
                f"{self.paths[0]}: column {column!r} holds integers, and the model knows {odd!r}, which an "
                "integer cannot spell; write the column as text, as it was when the model was trained"
            )

    def describe(self) -> list[str]:
        """What each column is taken for."""
        columns = [
            replace(column, kind=None, why="decides the split; a field only where it is named")
            if column.name in self.deciding_columns and not column.named
            else column
            for column in self.columns
        ]
        return [str(column) for column in columns]


def _check_types(column: RawColumn, first: Table, tables: Sequence[Table]) -> None:
    """Refuse a column whose equal values would become unequal tokens in different files.

    Raises:
        DataError: naming the files, the column and its types.
    """
    name = column.name
    for other in tables:
        are_numbers = {first.contents[name], other.contents[name]} <= {"integers", "decimals"}
        same = other.contents[name] == "empty" or other.spellings[name] == first.spellings[name]
        if not same and not (are_numbers and column.kind != "categorical"):
            advice = "write the files with one type"
            if column.kind is not None:
                advice += f", read it as numbers with --numeric {name}" if are_numbers else ""
                advice += f", or leave it out with --drop {name}"
            raise DataError(
                f"{other.path}: column {name!r} has type {other.types[name]}, but {first.types[name]} in "
                f"{first.path}; {advice}"
            )


def _check_kept(name: str, kind: pa.DataType, first: Table, tables: Sequence[Table]) -> None:
    """Refuse a column that would have to be converted to be carried along, or whose rows Arrow cannot select.

    Raises:
        OptionError: naming the files, the column and its types.
    """
    try:
        pa.nulls(0, kind).filter(pa.array([], pa.bool_()))
    except pa.ArrowNotImplementedError as error:
        raise OptionError(
            f"--keep {name}: {first.path} has type {kind}, of which Arrow cannot select rows; write "
            "plain strings, binaries or lists in place of views and run-end encoding, or do not keep it"
        ) from error
    for other in tables:
        its = other.type_of(name)
        if its != kind and not pa.types.is_null(its) and not (is_string(its) and is_string(kind)):
            raise OptionError(
                f"--keep {name}: the column has type {its} in {other.path}, but {kind} in {first.path}; "
                "write the files with one type, or do not keep it"
            )


def is_parquet(path: str) -> bool:
    """Whether a file begins as a Parquet file does, whatever its name says."""
    with storage.open_read(path) as file:
        return bool(file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC)


def _open(path: str, wanted: Collection[str] | None) -> Table:
    return ParquetTable(path, wanted) if is_parquet(path) else CsvTable(path, wanted)


def _data_start(path: str, wanted: Collection[str] | None) -> int | None:
    """Bytes before the first row, as far as a sample tells; None: there is none."""
    if is_parquet(path):
        return 0 if sum(ParquetTable(path, wanted).row_groups) else None
    sample = files.head(path, CHECKED_BYTES)
    _, rest = header_and_rest(sample)
    is_whole = len(sample) < CHECKED_BYTES - len(files.BYTE_ORDER_MARK)
    return None if is_whole and not rest else len(sample) - len(rest)
