"""Fields from spooled values: what each distinct value of each part becomes.

Building a field takes two passes over the parts' distinct values: one that adds them up (to ids, or
to a mean and a deviation), and one that writes the *map*, which says for each part what its values
become. Fields with few values share the passes, so that a part is opened once for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from afm_dist import storage
from data_prep import vocabulary
from data_prep.columns import numbers_of
from data_prep.exact_sums import ExactMoments
from data_prep.sources.source import RawField, Source
from data_prep.spool import PartValues, open_values
from data_prep.transforms import TRANSFORMS, FieldRule
from data_prep.vocabulary import Encoder, TokenCounts, TokenRange

LARGEST = float(np.finfo(np.float32).max)
# Each map is an open file while it is written, and systems allow as few as 256.
MAPS_AT_ONCE = 64


class FieldBuilder(ABC):
    """One field, or one range of its tokens, while it is being built.

    Attributes:
        map_type: Arrow type of what its values become.
    """

    map_type: pa.DataType

    @abstractmethod
    def add(self, values: PartValues) -> None:
        """First pass, part by part."""

    @abstractmethod
    def close(self) -> None:
        """All parts were added."""

    @abstractmethod
    def mapped(self, values: PartValues) -> pa.Array:
        """Second pass: what the distinct values of a part become."""


class NumberBuilder(FieldBuilder):
    """A numeric field: ``(transformed − mean) / deviation``, of the training split.

    Mean and deviation are 0 and 1 where the transform says that numbers are used as they are.
    """

    map_type = pa.float32()

    def __init__(self, rule: FieldRule) -> None:
        self.rule = rule
        self.mean, self.deviation = 0.0, 1.0
        self._sums = ExactMoments()

    def add(self, values: PartValues) -> None:
        """Add up what is present."""
        found = values[self.rule.column]
        numbers, missing = numbers_of(self.rule.apply(found["value"]))
        present = slice(None) if missing is None else ~missing
        self._sums += ExactMoments.of(numbers[present], found["count"].to_numpy()[present])

    def close(self) -> None:
        """Mean and deviation."""
        if TRANSFORMS[self.rule.transform].standardised:
            self.mean, self.deviation = self._sums.mean(), self._sums.deviation()

    def mapped(self, values: PartValues) -> pa.Array:
        """(V) float32."""
        return scaled(self.rule, values[self.rule.column]["value"], self.mean, self.deviation)


def scaled(rule: FieldRule, values: pl.Series, mean: float, deviation: float) -> pa.Array:
    """What (V) distinct raw values of a numeric field become.

    Returns:
        (V) finite float32, null where missing; what is beyond the largest float32 becomes it.
    """
    numbers, missing = numbers_of(rule.apply(values))
    # Of -0.0 and 0.0, which are equal, a part keeps either: adding 0.0 makes them one.
    with np.errstate(over="ignore"):
        made = (numbers - mean) / deviation + 0.0
    return pa.array(np.clip(made, -LARGEST, LARGEST).astype(np.float32), mask=missing)


def tokens_of(rule: FieldRule, values: pl.Series, source: Source) -> pl.Series:
    """The tokens of a categorical field that (V) distinct raw values become."""
    return rule.apply(source.token_text(values) if rule.timed else values)


class TokenBuilder(FieldBuilder):
    """A categorical field, or a range of its tokens.

    Args:
        source: The raw log.
        rule: How the field is made.
        threshold: Smallest count that earns an id of its own.
        tokens: The range.
    """

    map_type = pa.int32()

    def __init__(self, source: Source, rule: FieldRule, threshold: int, tokens: TokenRange) -> None:
        self.source = source
        self.rule = rule
        self.threshold = threshold
        self.range = tokens
        self.ids = pl.DataFrame()
        self._counts = TokenCounts()
        self._encoder: Encoder | None = None

    def _tokens(self, values: pl.Series) -> tuple[slice, pl.Series]:
        """Where the range lies among a part's values, and the tokens these become."""
        place = self.range.of(values)
        return place, tokens_of(self.rule, values[place], self.source)

    def add(self, values: PartValues) -> None:
        """Add up the counts."""
        found = values[self.rule.column]
        place, tokens = self._tokens(found["value"])
        self._counts.add(tokens, found["count"][place])

    def counted(self) -> pl.DataFrame:
        """The tokens that earn an id: token, count; ascending by token."""
        return self._counts.at_least(self.threshold)

    def close(self) -> None:
        """Ids, where this range is all there is."""
        counted = self.counted()
        (first_id,) = vocabulary.first_ids([vocabulary.count_histogram(counted)])
        self.assign(vocabulary.assign_ids(counted, first_id))

    def assign(self, ids: pl.DataFrame) -> None:
        """Take ids that were decided elsewhere: id, token, count; ascending by token."""
        self.ids = ids
        self._encoder = Encoder.of(ids)

    def mapped(self, values: PartValues) -> pa.Array:
        """(V) int32."""
        assert self._encoder is not None
        _, tokens = self._tokens(values[self.rule.column]["value"])
        return pa.array(self._encoder.encode(tokens))

    def text(self, tokens: pl.Series) -> pl.Series:
        """Tokens as texts."""
        if self.rule.keeps_tokens:
            return self.source.token_text(tokens)
        return tokens.cast(pl.String).fill_null("")


def add_up(builders: Sequence[FieldBuilder], parts: Sequence[str], columns: Sequence[RawField]) -> None:
    """The first pass."""
    for part in parts:
        with open_values(part, columns) as values:
            for builder in builders:
                builder.add(values)


def write_maps(
    builders: Sequence[FieldBuilder],
    parts: Sequence[str],
    columns: Sequence[RawField],
    paths: Sequence[str],
) -> None:
    """The second pass: one Arrow file per builder, one record batch per part, in order."""
    for first in range(0, len(builders), MAPS_AT_ONCE):
        some = slice(first, first + MAPS_AT_ONCE)
        _write_maps(builders[some], parts, columns, paths[some])


def _write_maps(
    builders: Sequence[FieldBuilder],
    parts: Sequence[str],
    columns: Sequence[RawField],
    paths: Sequence[str],
) -> None:
    with ExitStack() as stack:
        writers = []
        for builder, path in zip(builders, paths, strict=True):
            schema = pa.schema([("value", builder.map_type)])
            sink = stack.enter_context(storage.open_write(path))
            writers.append((builder, schema, stack.enter_context(pa.ipc.new_file(sink, schema))))
        for part in parts:
            with open_values(part, columns) as values:
                for builder, schema, writer in writers:
                    writer.write_batch(pa.record_batch([builder.mapped(values)], schema=schema))


def build(
    source: Source,
    rules: Sequence[FieldRule],
    columns: Sequence[RawField],
    parts: Sequence[str],
    paths: Sequence[str],
    *,
    threshold: int,
    dataset: str,
    training_rows: int,
) -> list[dict[str, Any]]:
    """Build whole fields, of which the tokens fit in memory together.

    Args:
        source: The raw log.
        rules: The fields.
        columns: All columns of a part.
        parts: Paths of the parts, in order.
        paths: Where the maps go.
        threshold: Smallest count that earns an id of its own.
        dataset: The dataset directory, for the vocabularies.
        training_rows: Of the log.

    Returns:
        For each field what the manifest has to say: mean and deviation, or the vocabulary file.
    """
    builders = [
        NumberBuilder(rule) if rule.kind == "numeric" else TokenBuilder(source, rule, threshold, TokenRange())
        for rule in rules
    ]
    add_up(builders, parts, columns)
    for builder in builders:
        builder.close()
    write_maps(builders, parts, columns, paths)
    results = []
    for builder in builders:
        if isinstance(builder, NumberBuilder):
            results.append({"mean": builder.mean, "deviation": builder.deviation})
        else:
            unknown_rows = training_rows - int(builder.ids["count"].sum())
            shard = vocabulary.write_vocabulary(
                builder.rule.name, dataset, [builder.ids.sort("id")], builder.text, unknown_rows
            )
            results.append(asdict(shard))
    return results
