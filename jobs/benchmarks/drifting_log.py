"""Write a click log that drifts, as one Parquet file in the order of time: what shuffling is for.

python -m jobs.benchmarks.drifting_log drifting.parquet --rows 500000

The rows are those of the planted log in Criteo's shape, but for the labels, which are drawn anew: over the
log, the log-odds of a click grow by ``rise``. With ``campaigns``, the tokens of the fields C1 to C5 change
from tenth to tenth of the log, as advertisements come and go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import polars as pl
import tyro

from afm_dist import storage
from afm_dist.runtime import console
from data_prep.sources.planted import BLOCK_ROWS, PlantedModel
from data_prep.sources.planted_shapes import SHAPES

PERIODS = 10
CHANGING_FIELDS = 5


@dataclass(frozen=True, kw_only=True)
class DriftingLog:
    """Write a click log that drifts."""

    output: Annotated[str, tyro.conf.Positional]
    """Parquet file to write."""
    rows: int = 500_000
    """Rows of the log."""
    rise: float = 2.0
    """How much the log-odds of a click grow from the first row to the last."""
    campaigns: bool = False
    """Whether tokens of the fields C1 to C5 come and go."""
    seed: int = 0
    """Of the log."""


def main(config: DriftingLog) -> None:
    """Run the job."""
    frames = [_block(config, index) for index in range(-(-config.rows // BLOCK_ROWS))]
    with storage.open_write(storage.absolute(config.output)) as file:
        pl.concat(frames).head(config.rows).write_parquet(file)


def _block(config: DriftingLog, index: int) -> pl.DataFrame:
    """Consecutive rows: label, time in [0, 1), numbers and tokens."""
    model = PlantedModel(SHAPES["criteo"], config.seed)
    rows = model.block(index)
    time = rows.number / config.rows
    odds = np.log(rows.probability / (1 - rows.probability)) + config.rise * (time - 0.5)
    chance = np.random.default_rng([config.seed, index, 1]).random(len(time))
    columns = {
        "click": pl.Series((chance < 1 / (1 + np.exp(-odds))).astype(np.uint8)),
        "time": pl.Series(time),
    }
    for place, number in enumerate(model.shape.integers):
        values = pl.Series(rows.integers[:, place].astype(np.float64))
        columns[number.name] = values.set(pl.Series(rows.integer_missing[:, place]), None)
    period = np.minimum(time * PERIODS, PERIODS - 1).astype(np.int64)
    for place, token in enumerate(model.shape.tokens):
        ids = rows.ids[:, place]
        if config.campaigns and place < CHANGING_FIELDS:
            ids = ids * PERIODS + period
        columns[token.name] = pl.Series(ids).cast(pl.String)
    return pl.DataFrame(columns)


if __name__ == "__main__":
    console.run_job(DriftingLog, main)
