"""Vocabularies on disk, ascending by token, to be looked up where they lie.

A vocabulary holds texts by descending count. A *lookup* is made of it once a job: an Arrow file of tokens
as the source reads them, in ascending order, with their ids. Workers map it, so that a node holds one copy
of the pages in use, whatever their number; on an object store there is nothing to map, and each worker
process fetches a copy of its own to TMPDIR. The first record batch holds the missing token alone, if it has
an id.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from data_prep import vocabulary
from data_prep.sources.source import Source, SpellingError
from data_prep.transforms import FieldRule
from data_prep.vocabulary import UNKNOWN, Encoder, TokenRange

READ_ROWS = 1 << 18
# Texts are looked up so many at a time: Polars makes a view of each. Numbers are looked up in place.
TEXTS_AT_ONCE = 1 << 16


def write_lookup(manifest: Manifest, rule: FieldRule, source: Source, target: str) -> int:
    """Make the lookup of one field, in memory of some copies of one range of its tokens.

    Args:
        manifest: What makes raw rows inputs of the model; the vocabulary's checksum is verified.
        rule: How the field is made.
        source: What reads the raw rows.
        target: The file to write.

    Returns:
        The tokens that have an id.

    Raises:
        DataError: the vocabulary is missing, damaged, or not one of this source, or a column of the rows
            cannot spell its tokens.
    """
    file = manifest.vocabulary[rule.name]
    manifest.check(file)
    location = storage.join(manifest.location, file.path)

    def chunks() -> Iterator[pl.DataFrame]:
        return _tokens(location, rule, source)

    ranges, total = [TokenRange()], 0
    if file.rows > vocabulary.RANGE_TOKENS:
        ranges = vocabulary.cut_into_ranges(file.rows, (chunk["token"] for chunk in chunks()))
    frame = _sorted(ranges[0], chunks())
    missing = frame.filter(pl.col("token").is_null())
    frame = frame.drop_nulls("token")
    schema = _arrow(frame.clear()).schema
    with storage.open_write(target) as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(_arrow(missing).to_pylist(), schema=schema))
        for number, tokens in enumerate(ranges):
            if number:
                # Not two ranges at a time.
                frame = frame.clear()
                frame = _sorted(tokens, chunks())
            size = TEXTS_AT_ONCE if frame["token"].dtype == pl.String else max(1, frame.height)
            for piece in frame.iter_slices(size):
                for batch in _arrow(piece.rechunk()).to_batches():
                    writer.write_batch(batch)
            total += frame.height
        total += missing.height
        if total != file.rows - 1:
            raise DataError(f"{location}: {total} different tokens where its ids promise {file.rows - 1}")
    return total


def _tokens(location: str, rule: FieldRule, source: Source) -> Iterator[pl.DataFrame]:
    """Id and token, piece by piece, ascending by token; without the unknown."""
    try:
        with storage.open_read(location) as raw, pq.ParquetFile(raw) as file:
            for batch in file.iter_batches(READ_ROWS, columns=["id", "token"]):
                frame = pl.DataFrame(batch).filter(pl.col("id") != UNKNOWN)
                text = frame["token"]
                if rule.keeps_tokens:
                    source.check_tokens(rule.column, text)
                token = source.tokens_of(text) if rule.keeps_tokens else _integers(text)
                yield frame.with_columns(token.alias("token")).sort("token")
    except SpellingError:
        raise
    except (pa.ArrowException, pl.exceptions.PolarsError, DataError) as error:
        if str(error).startswith(location):
            raise
        raise DataError(f"{location}: not a vocabulary of this model ({error})") from error


def _integers(text: pl.Series) -> pl.Series:
    """What transforms make of raw values, from how the vocabulary spells it."""
    return pl.select(pl.when(text != "").then(text).cast(pl.Int64)).to_series()


def _sorted(tokens: TokenRange, chunks: Iterator[pl.DataFrame]) -> pl.DataFrame:
    """One range of the tokens."""
    pieces = [_copied(chunk, tokens.of(chunk["token"])) for chunk in chunks]
    # No chunk: a vocabulary of the unknown alone, without a row.
    return pl.concat(pieces).unique("token").sort("token") if pieces else _no_tokens()


def _copied(chunk: pl.DataFrame, place: slice) -> pl.DataFrame:
    """Some rows; a slice, or views gathered from it, would keep the whole chunk in memory."""
    rows = _arrow(chunk[place])
    return pl.DataFrame(rows.take(pa.array(np.arange(rows.num_rows))))


def _no_tokens() -> pl.DataFrame:
    return pl.DataFrame(schema={"id": pl.Int32, "token": pl.String})


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.select("id", "token").to_arrow(compat_level=pl.CompatLevel.oldest())


class Lookup:
    """A map from tokens to ids, in a mapped file.

    Args:
        location: What ``write_lookup`` wrote.
    """

    def __init__(self, location: str) -> None:
        with storage.local_copy(location) as path:
            # The file stays mapped, also when its name is gone.
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        missing = self._file.get_batch(0)
        self._missing = int(missing.column("id")[0].as_py()) if missing.num_rows else UNKNOWN
        self._pieces = range(1, self._file.num_record_batches)
        firsts = [self._file.get_batch(piece).column("token")[0].as_py() for piece in self._pieces[1:]]
        self._ranges = [
            TokenRange(first=first, end=end)
            for first, end in zip([None, *firsts], [*firsts, None], strict=True)
        ]
        self._only = self._encoder(1) if len(self._pieces) == 1 else None

    def encode(self, tokens: pl.Series) -> np.ndarray:
        """Ids (V) int32; tokens that are not there become 0.

        Args:
            tokens: (V) tokens; ascending, the missing one first, where the lookup has several pieces.
        """
        if self._only is not None:
            return self._only.encode(tokens)
        ids = np.full(len(tokens), UNKNOWN, dtype=np.int32)
        if tokens.null_count():
            ids[tokens.is_null().to_numpy()] = self._missing
        for piece, tokens_of_piece in zip(self._pieces, self._ranges, strict=False):
            place = tokens_of_piece.of(tokens)
            if place.start < place.stop:
                ids[place] = self._encoder(piece).encode(tokens[place])
        return ids

    def _encoder(self, piece: int) -> Encoder:
        batch = self._file.get_batch(piece)
        return Encoder(
            tokens=pl.Series(batch.column("token")),
            ids=batch.column("id").to_numpy(),
            missing=self._missing,
        )


@cache
def open_lookup(location: str) -> Lookup:
    """A lookup, opened once a process."""
    return Lookup(location)
