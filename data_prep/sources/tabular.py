"""Tables with a header, CSV or Parquet, whose columns the user names or lets infer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from afm_dist.errors import DataError
from data_prep.sources import files
from data_prep.sources.csv_table import CsvTable
from data_prep.sources.parquet_table import ParquetTable
from data_prep.sources.source import Block, RawField, RawRows, Source, check_inputs
from data_prep.sources.tabular_columns import ColumnOptions, choose_columns

PARQUET_MAGIC = b"PAR1"


class TabularSource(Source):
    """CSV (plain or gzip, comma or tab separated) or Parquet files with equal columns.

    Args:
        paths: The files, in order, all of one format.
        columns: Label, and what the user says about the other columns.

    Raises:
        DataError: a file is absent, empty, holds a header only, or is not a table.
        OptionError: a column named by an option is not there.
    """

    kind = "tabular"
    token_type: pl.DataType = pl.String()

    def __init__(self, paths: Sequence[str], columns: ColumnOptions) -> None:
        self.paths = tuple(paths)
        self.label = columns.label
        check_inputs(self.paths)
        self._tables = [_open(path) for path in self.paths]
        first = self._tables[0]
        for other in self._tables[1:]:
            if other.names != first.names:
                raise DataError(
                    f"{other.path}: its columns ({', '.join(other.names)}) are not those of {first.path} "
                    f"({', '.join(first.names)})"
                )
        self.columns = choose_columns(first.contents, columns, first.path)
        self.fields = tuple(RawField(name=c.name, kind=c.kind) for c in self.columns if c.kind is not None)

    def blocks(self) -> list[Block]:
        """Row groups of Parquet files; whole CSV files."""
        return [
            Block(file=index, start=start, end=end, expected_rows=rows)
            for index, table in enumerate(self._tables)
            for start, end, rows in table.ranges()
        ]

    def count_rows(self, block: Block) -> int:
        """Rows of the row groups; a CSV file is one block, whose rows nobody needs to know."""
        return block.expected_rows

    def read(self, block: Block, first_row: int) -> Iterator[RawRows]:
        """Convert a block batch by batch."""
        return self._tables[block.file].read(block.start, block.end, first_row, self.label, self.fields)

    def describe(self) -> list[str]:
        """What each column is taken for."""
        return [str(column) for column in self.columns]


def _open(path: str) -> CsvTable | ParquetTable:
    with files.open_input(path) as file:
        return ParquetTable(path) if file.read(4) == PARQUET_MAGIC else CsvTable(path)
