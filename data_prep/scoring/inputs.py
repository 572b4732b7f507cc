"""Raw rows to a model's inputs, by the functions that made the training data.

Shape legend: B rows, F categorical fields, C numeric fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.shard import Columns, write_numbers
from data_prep.encode import gather_numbers
from data_prep.fields import scaled, tokens_of
from data_prep.scoring.lookup import open_lookup
from data_prep.sources.source import RawRows, Source
from data_prep.transforms import FieldRule
from data_prep.vocabulary import UNKNOWN


@dataclass(frozen=True, kw_only=True)
class InputMaker:
    """What the inputs of all rows have in common.

    Attributes:
        source: What reads the raw rows.
        manifest: What makes them inputs of the model.
        rules: How each field is made, in model order.
        lookups: By name of a categorical field, its lookup.
    """

    source: Source
    manifest: Manifest
    rules: Sequence[FieldRule]
    lookups: Mapping[str, str]

    def make(self, rows: RawRows) -> tuple[Columns, dict[str, int]]:
        """Inputs of B rows, and of how many of them the token of each categorical field is unknown."""
        columns = {name: rows.columns[name].sorted() for name in {rule.column for rule in self.rules}}
        n_rows = len(rows.numbers)
        ids = np.empty((len(self.manifest.categorical), n_rows), dtype=np.int32)
        numeric = np.empty((len(self.manifest.numeric), n_rows), dtype=np.float32)
        next_ids, next_numeric = iter(ids), iter(numeric)
        unknown = {}
        for rule, field in zip(self.rules, self.manifest.fields, strict=True):
            column = columns[rule.column]
            if rule.kind == "categorical":
                tokens = tokens_of(rule, column.values, self.source)
                row = next(next_ids)
                row[:] = open_lookup(self.lookups[rule.name]).encode(tokens)[column.codes]
                unknown[rule.name] = int((row == UNKNOWN).sum())
            else:
                made = scaled(rule, column.values, field.mean, field.deviation)
                numbers = gather_numbers([made], [column.codes])
                write_numbers(pa.chunked_array([numbers]), next(next_numeric))
        return Columns(ids, numeric, rows.labels), unknown
