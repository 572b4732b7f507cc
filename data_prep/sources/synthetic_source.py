"""Synthetic logs as sources: read like Criteo's or Avazu's, with the best AUC any model can reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.best_score import BestScoreSums
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.forms import NO_FORMS, Forms
from data_prep.sources.planted import PART_ROWS
from data_prep.sources.planted_shapes import ShapeName
from data_prep.sources.synthetic import GENERATOR_VERSION, SyntheticLog
from data_prep.sources.text_log import TextLog
from data_prep.split import SPLITS, SplitRule


class SyntheticSource(TextLog):
    """A planted log; a subclass names the raw format.

    Args:
        log: What ``write_synthetic`` returned.
        block_bytes: As for every ``TextLog``.
    """

    kind = "synthetic"

    def __init__(self, log: SyntheticLog, *, block_bytes: int | None = None) -> None:
        super().__init__(log.paths, block_bytes=block_bytes)
        self.log = log

    def identity(self) -> dict[str, Any]:
        """The log's shape, seed and rows too."""
        return {**super().identity(), "log": self._log_facts()}

    def facts(self, split_of: SplitRule, forms: Forms = NO_FORMS) -> Mapping[str, Any]:
        """AUC and log loss of the true probabilities on the test rows (on all rows without any)."""
        test = SPLITS.index("test")
        on_test, on_all = BestScoreSums(), BestScoreSums()
        for labels, probabilities, splits in self._truth(split_of):
            on_all.add(labels, probabilities)
            on_test.add(labels[splits == test], probabilities[splits == test])
        score, split = (on_test, "test") if on_test.rows else (on_all, "all")
        return {
            **super().facts(split_of, forms),
            "bayes_auc": score.auc(),
            "bayes_log_loss": score.log_loss(),
            "bayes_split": split,
            "synthetic": self._log_facts(),
        }

    def _log_facts(self) -> dict[str, Any]:
        log = self.log
        return {"shape": log.shape, "rows": log.rows, "seed": log.seed, "generator": GENERATOR_VERSION}

    def _truth(self, split_of: SplitRule) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Labels, true probabilities and splits, file by file."""
        for index, path in enumerate(self.log.truths):
            truth = pl.DataFrame(pq.read_table(pa.BufferReader(storage.read_bytes(path))))
            numbers = truth["row"].to_numpy() - index * PART_ROWS
            if set(split_of.reads) <= set(truth.columns):
                splits = split_of(index, numbers, {name: truth[name].to_arrow() for name in split_of.reads})
            else:
                # Split by a column that the truth does not have: no row is known to be a test row.
                splits = np.zeros(len(numbers), dtype=np.uint8)
            yield truth["label"].to_numpy(), truth["probability"].to_numpy(), splits


class SyntheticCriteoSource(SyntheticSource, CriteoSource):
    """A planted log in Criteo's format."""


class SyntheticAvazuSource(SyntheticSource, AvazuSource):
    """A planted log in Avazu's format."""


_SOURCES: dict[ShapeName, type[SyntheticSource]] = {
    "criteo": SyntheticCriteoSource,
    "avazu": SyntheticAvazuSource,
}


def synthetic_source(log: SyntheticLog, *, block_bytes: int | None = None) -> SyntheticSource:
    """The source that reads a written log.

    Args:
        log: What ``write_synthetic`` returned.
        block_bytes: As for every ``TextLog``.
    """
    return _SOURCES[log.shape](log, block_bytes=block_bytes)
