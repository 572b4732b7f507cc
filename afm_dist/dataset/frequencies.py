"""How the training rows spread over the ids of a field, from its vocabulary, in bounded memory.

A vocabulary may have a billion rows. What is asked of it here needs only how many ids have which
count, and the different counts are few: they add up to no more than the rows of the log.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.dataset.vocabulary_file import BATCH_IDS, DamageError, counts_of, open_vocabulary, vocabulary_of


class Frequencies:
    """How many ids of a field have which count; G different counts.

    Args:
        unknown: Training rows with id 0.
        tokens_of: By count, how many ids above 0 have it.
    """

    def __init__(self, unknown: int, tokens_of: Counter[int]) -> None:
        self.unknown = unknown
        self._counts = np.array(sorted(tokens_of, reverse=True), dtype=np.int64)  # (G,), descending
        self._ids = np.array([tokens_of[int(count)] for count in self._counts], dtype=np.int64)  # (G,)
        # Ids and rows up to and including each count.
        self._ids_to = np.cumsum(self._ids)
        self._rows_to = np.cumsum(self._ids * self._counts)

    @property
    def ids(self) -> int:
        """Number of ids above 0."""
        return int(self._ids.sum())

    @property
    def known(self) -> int:
        """Training rows with an id above 0."""
        return int((self._ids * self._counts).sum())

    @property
    def rows(self) -> int:
        """Training rows."""
        return self.unknown + self.known

    def rows_of(self, ids: int) -> int:
        """Training rows of the ``ids`` most frequent ids above 0."""
        group = int(np.searchsorted(self._ids_to, ids))
        if group == len(self._counts):
            return self.known
        too_many = int(self._ids_to[group]) - ids
        return int(self._rows_to[group]) - too_many * int(self._counts[group])

    def ids_for(self, rows: int) -> int | None:
        """Count the fewest ids above 0 that make up so many training rows; None when all are fewer."""
        group = int(np.searchsorted(self._rows_to, rows))
        if group == len(self._counts):
            return None
        surplus = int(self._rows_to[group]) - rows
        return int(self._ids_to[group]) - surplus // int(self._counts[group])

    def at_least(self, count: int) -> tuple[int, int]:
        """Count the ids above 0 that occur so often or more, and the training rows they make up."""
        groups = int(np.searchsorted(-self._counts, -count, side="right"))
        return (int(self._ids_to[groups - 1]), int(self._rows_to[groups - 1])) if groups else (0, 0)


@dataclass(frozen=True)
class Vocabulary:
    """What one pass over a vocabulary finds.

    Attributes:
        frequencies: Of its ids.
        top: The most frequent tokens and their counts; the empty token is the missing value.
    """

    frequencies: Frequencies
    top: tuple[tuple[str, int], ...]


def read_vocabulary(manifest: Manifest, field: Field, top: int) -> Vocabulary:
    """Read the counts of all ids, and the ``top`` most frequent tokens.

    The checksum is verified, and all else compared with the manifest.

    Raises:
        DataError: the vocabulary is missing, damaged, or disagrees with the manifest.
    """
    with open_vocabulary(manifest, field) as parquet:
        manifest.check(vocabulary_of(manifest, field))
        frequencies = _read_counts(parquet)
        tokens = _read_top(parquet, top)
        rows = manifest.rows("train")
        if (frequencies.ids + 1, frequencies.rows) != (field.cardinality, rows):
            raise DamageError(
                f"{frequencies.ids + 1} ids with {frequencies.rows} occurrences, but the manifest has "
                f"{field.cardinality} ids and {rows} training rows"
            )
    return Vocabulary(frequencies, tokens)


def _read_counts(parquet: pq.ParquetFile) -> Frequencies:
    unknown = 0
    tokens_of: Counter[int] = Counter()
    next_id, least = 0, np.iinfo(np.int64).max
    for batch in parquet.iter_batches(BATCH_IDS, columns=["id", "count"]):
        counts = counts_of(batch, next_id)
        if next_id == 0:
            unknown, counts = int(counts[0]), counts[1:]
        if (np.diff(counts, prepend=least) > 0).any():
            raise DamageError("the ids are not in order of descending count")
        next_id, least = next_id + len(batch), counts[-1] if len(counts) else least
        values, numbers = np.unique(counts, return_counts=True)
        tokens_of.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    if min(unknown, least) < 0:
        raise DamageError("a count is negative")
    return Frequencies(unknown, tokens_of)


def _read_top(parquet: pq.ParquetFile, top: int) -> tuple[tuple[str, int], ...]:
    first = next(parquet.iter_batches(top + 1, columns=["token", "count"]), None)
    if first is None:
        return ()
    tokens = [token or "" for token in first["token"].to_pylist()]
    return tuple(zip(tokens[1:], first["count"].to_pylist()[1:], strict=True))
