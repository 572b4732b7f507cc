"""Criteo's click log: 40 tab-separated fields without a header, plain or gzip.

Label, I1 to I13 (integers), C1 to C26 (8 hex digits); any field but the label may be empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from afm_dist.errors import DataError
from data_prep.sources import criteo_lines, files
from data_prep.sources.source import Block, RawField, RawRows, Rejected, Source, check_inputs

MIN_BLOCK_BYTES = 4 << 20
MAX_BLOCK_BYTES = 32 << 20
BLOCKS = 64
GZIP_RATIO = 3
SAMPLE_BYTES = 1 << 18

LABEL = "label"


class CriteoSource(Source):
    """Criteo's raw log.

    Args:
        paths: The files, in order (Kaggle: ``train.txt``; 1TB: ``day_0.gz`` …).
        block_bytes: Bytes per block; by default 1/64 of the input, at least 4 MB, at most 32 MB.

    Raises:
        DataError: a file is absent, empty, or not tab-separated with 40 fields.
    """

    kind = "criteo"
    token_type: pl.DataType = pl.UInt32()

    def __init__(self, paths: Sequence[str], *, block_bytes: int | None = None) -> None:
        self.paths = tuple(paths)
        self.label = LABEL
        self.fields = (
            *(RawField(name=f"I{n}", kind="numeric") for n in range(1, 1 + criteo_lines.INTEGERS)),
            *(RawField(name=f"C{n}", kind="categorical") for n in range(1, 1 + criteo_lines.TOKENS)),
        )
        check_inputs(self.paths)
        for path in self.paths:
            _check_tabs(path)
        self._gzip = tuple(files.is_gzip(path) for path in self.paths)
        sizes = [files.describe(path).bytes for path in self.paths]
        self.block_bytes = block_bytes or min(max(sum(sizes) // BLOCKS, MIN_BLOCK_BYTES), MAX_BLOCK_BYTES)
        self._sizes = sizes

    def blocks(self) -> list[Block]:
        """Byte ranges of plain files; whole gzip files."""
        result = []
        for index, (path, size) in enumerate(zip(self.paths, self._sizes, strict=True)):
            sample = files.head(path, SAMPLE_BYTES)
            row_bytes = len(sample) / max(1, sample.count(b"\n"))
            if self._gzip[index]:
                rows = max(1, int(size * GZIP_RATIO / row_bytes))
                result.append(Block(file=index, start=0, end=size, expected_rows=rows))
                continue
            for start in range(0, size, self.block_bytes):
                end = min(size, start + self.block_bytes)
                rows = max(1, round((end - start) / row_bytes))
                result.append(Block(file=index, start=start, end=end, expected_rows=rows))
        return result

    def _pieces(self, block: Block) -> Iterator[bytes]:
        path = self.paths[block.file]
        if self._gzip[block.file]:
            return files.lines_of_gzip(path)
        return files.lines_of_range(path, block.start, block.end)

    def count_rows(self, block: Block) -> int:
        """Number of lines."""
        return sum(piece.count(b"\n") + (not piece.endswith(b"\n")) for piece in self._pieces(block))

    def read(self, block: Block, first_row: int) -> Iterator[RawRows]:
        """Parse the lines of a block."""
        for piece in self._pieces(block):
            parsed = criteo_lines.parse(piece)
            columns = {LABEL: pa.array(parsed.labels)}
            for n, (values, missing) in enumerate(parsed.integers, start=1):
                columns[f"I{n}"] = pa.array(values, mask=missing)
            for n, (codes, missing) in enumerate(parsed.tokens, start=1):
                columns[f"C{n}"] = pa.array(codes, mask=missing)
            frame = pl.from_arrow(pa.table(columns))
            assert isinstance(frame, pl.DataFrame)
            yield RawRows(
                frame=frame,
                numbers=first_row + parsed.good.astype(np.int64),
                rejected=[
                    Rejected(line=first_row + index + 1, reason=reason, text=text)
                    for index, reason, text in parsed.bad
                ],
            )
            first_row += parsed.lines

    def token_text(self, tokens: pl.Series) -> pl.Series:
        """Eight hex digits, or the empty text."""
        text = hex_text(tokens.fill_null(0).to_numpy())
        return pl.select(pl.when(tokens.is_null()).then(pl.lit("")).otherwise(text)).to_series()


def hex_text(values: np.ndarray) -> pl.Series:
    """Unsigned 32-bit integers (B) as eight lower-case hex digits each."""
    nibbles = (values[:, None] >> np.arange(28, -1, -4, dtype=np.uint32)) & np.uint32(15)
    characters = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[nibbles]
    offsets = np.arange(0, 8 * len(values) + 1, 8, dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(characters.tobytes())]
    return pl.Series(pa.Array.from_buffers(pa.large_string(), len(values), buffers))


def _check_tabs(path: str) -> None:
    """Refuse at once a file whose first line cannot be Criteo's.

    Raises:
        DataError: naming the file.
    """
    if b"\t" not in files.head(path, SAMPLE_BYTES).partition(b"\n")[0]:
        raise DataError(f"{path}:1: no tab in the first line; --source criteo reads 40 tab-separated fields")
