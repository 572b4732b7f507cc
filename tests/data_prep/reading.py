"""All rows of a source as plain Python, read block by block as the pipeline reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from data_prep.sources.source import RawRows, Rejected, Source
from tests.data_prep.raw_logs import Row


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a source holds.

    Attributes:
        rows: The good ones.
        numbers: For each, its number within its file.
        rejected: The bad ones.
        pieces: How many pieces they came in.
    """

    rows: list[Row]
    numbers: list[int]
    rejected: list[Rejected]
    pieces: int

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """Line and reason of each rejected row."""
        return [(bad.line, bad.reason) for bad in self.rejected]


def read(source: Source) -> Read:
    """Read every block; each begins where the one before ends, or a file is read as a whole."""
    pieces: list[RawRows] = []
    for file in range(len(source.paths)):
        blocks = [block for block in source.blocks() if block.file == file]
        sizes = [source.count_rows(block) for block in blocks] if len(blocks) > 1 else [0]
        if None in sizes:
            blocks, sizes = [replace(blocks[0], end=blocks[-1].end)], [0]
        first_row = 0
        for block, size in zip(blocks, sizes, strict=True):
            pieces += source.read(block, first_row)
            first_row += size or 0
    return Read(
        rows=[row for piece in pieces for row in _rows(source, piece)],
        numbers=[number for piece in pieces for number in piece.numbers.tolist()],
        rejected=[bad for piece in pieces for bad in piece.rejected],
        pieces=len(pieces),
    )


def _rows(source: Source, piece: RawRows) -> list[Row]:
    columns = [
        pl.Series("label", piece.labels).cast(pl.Float64),
        *(column.rows() for column in piece.columns.values()),
    ]
    for index, field in enumerate(source.fields, start=1):
        if field.kind == "categorical":
            tokens = columns[index]
            assert tokens.dtype == source.token_type
            text = source.token_text(tokens)
            columns[index] = pl.select(pl.when(tokens.is_not_null()).then(text)).to_series()
    return [list(row) for row in zip(*(column.to_list() for column in columns), strict=True)]
