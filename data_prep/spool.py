"""Parsed rows on disk between the two halves of a preparation.

The raw text is parsed once. Each part of a block is spooled as three Arrow files: the codes of its
rows, one record batch per split; and the distinct values that the codes stand for with their
counts in the training split, one record batch per column, tokens and numbers apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import ArrowException

from afm_dist import storage
from afm_dist.dataset.manifest import FieldKind
from afm_dist.errors import DataError, StorageError
from data_prep.columns import Column
from data_prep.sources.source import RawField
from data_prep.split import SPLITS, TRAIN

# Fetched at once from an object store: what is wanted is small, and lies apart.
READ_BYTES = 1 << 20
CODES = "codes"
FILE_OF: dict[FieldKind, str] = {"categorical": "tokens", "numeric": "numbers"}
# No field can have this name.
LABEL_COLUMN = ""


@dataclass(frozen=True, kw_only=True)
class SpooledPart:
    """What one part of a block holds.

    Attributes:
        path: Of its files, without their endings.
        split_rows: Rows per split.
        positives: Rows with label 1 per split.
        distinct: Distinct values per column.
        missing: Rows without a value per column, over all splits.
    """

    path: str
    split_rows: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    positives: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    distinct: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a receipt."""
        return asdict(self)


def write_part(
    path: str,
    labels: np.ndarray,
    columns: dict[str, Column],
    kinds: dict[str, FieldKind],
    splits: np.ndarray,
) -> SpooledPart:
    """Spool some rows.

    Args:
        path: Of the files, without their endings.
        labels: (B) uint8.
        columns: By name, B rows each.
        kinds: Of the columns.
        splits: (B) index of each row's split.
    """
    order = np.argsort(splits, kind="stable")
    split_rows = [int((splits == split).sum()) for split in range(len(SPLITS))]
    bounds = np.cumsum([0, *split_rows])
    part = SpooledPart(
        path=path,
        split_rows=split_rows,
        positives=[int(labels[splits == split].sum()) for split in range(len(SPLITS))],
    )
    codes: dict[str, np.ndarray] = {LABEL_COLUMN: labels[order]}
    counted: dict[str, list[pa.RecordBatch]] = {name: [] for name in FILE_OF.values()}
    for name, column in columns.items():
        ascending = column.sorted()
        n_values = len(ascending.values)
        codes[name] = ascending.codes[order]
        counts = np.bincount(codes[name][: bounds[TRAIN + 1]], minlength=n_values).astype(np.uint32)
        counted[FILE_OF[kinds[name]]].append(
            pa.record_batch(
                {"value": ascending.values.to_arrow(compat_level=pl.CompatLevel.oldest()), "count": counts}
            )
        )
        part.distinct[name] = n_values
        has_missing = ascending.values.null_count() > 0
        part.missing[name] = int((codes[name] == 0).sum()) if has_missing else 0
    table = pa.record_batch({name: pa.array(values) for name, values in codes.items()})
    _write(f"{path}-{CODES}", [table.slice(a, b - a) for a, b in pairwise(bounds)])
    for ending, batches in counted.items():
        _write(f"{path}-{ending}", batches)
    return part


def _write(path: str, batches: Sequence[pa.RecordBatch]) -> None:
    if not batches:
        return
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    storage.write_bytes(f"{path}.arrow", memoryview(sink.getvalue()))


@contextmanager
def open_arrow(path: str) -> Iterator[pa.RecordBatchFileReader]:
    """An Arrow file, mapped where it is local.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with ExitStack() as stack:
            if storage.is_local(path):
                with storage.local_copy(path) as local:
                    source = stack.enter_context(pa.memory_map(str(local)))
            else:
                source = stack.enter_context(storage.open_read(path, READ_BYTES))
            yield stack.enter_context(pa.ipc.open_file(source))
    except (ArrowException, OSError) as error:
        # Arrow's have no number; those of the disk or the store say themselves what they are.
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, StorageError)):
            raise
        raise DataError(
            f"{path}: damaged ({error}); give --resume never, or delete the folder, to start anew"
        ) from error


@contextmanager
def open_codes(part: str, split: int) -> Iterator[pa.RecordBatch]:
    """The codes of a part's rows in one split: the label, and every column."""
    with open_arrow(f"{part}-{CODES}.arrow") as reader:
        yield reader.get_batch(split)


def read_map(paths: Sequence[str], parts: Sequence[int]) -> list[pa.Array]:
    """For some parts, what their distinct values become; a map may lie in several files."""
    ranges = []
    for path in paths:
        with open_arrow(path) as reader:
            ranges.append([reader.get_batch(part).column(0) for part in parts])
    return [
        pa.concat_arrays(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*ranges, strict=True)
    ]


@dataclass(frozen=True)
class PartValues:
    """The distinct values of one part, column by column."""

    _readers: Mapping[str, pa.RecordBatchFileReader]
    _fields: Sequence[RawField]

    def __getitem__(self, column: str) -> pl.DataFrame:
        """Ascending values and their counts in the training split: value, count."""
        kind = next(f.kind for f in self._fields if f.name == column)
        batch = [f.name for f in self._fields if f.kind == kind].index(column)
        # What was read stays mapped as long as it is used.
        return pl.DataFrame(self._readers[FILE_OF[kind]].get_batch(batch))


@contextmanager
def open_values(part: str, columns: Sequence[RawField]) -> Iterator[PartValues]:
    """The distinct values of a part.

    Args:
        part: Its path, without endings.
        columns: All its columns, in order.
    """
    with ExitStack() as stack:
        readers = {
            FILE_OF[kind]: stack.enter_context(open_arrow(f"{part}-{FILE_OF[kind]}.arrow"))
            for kind in {f.kind for f in columns}
        }
        yield PartValues(readers, columns)
