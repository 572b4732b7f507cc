"""A synthetic log in Criteo's raw format, with its true click probabilities beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import console, storage
from afm_dist.errors import OptionError
from data_prep.sources.criteo import CriteoSource, hex_text
from data_prep.sources.criteo_lines import INTEGERS
from data_prep.sources.planted import CARDINALITIES, PlantedModel, PlantedRows
from data_prep.sources.source import SplitOf
from data_prep.split import SPLITS

GENERATOR_VERSION = 1
BLOCK_ROWS = 1 << 16
HISTOGRAM_BINS = 1 << 22
BYTES_PER_ROW = 245
LOG = "train.txt"
TRUTH = "truth.parquet"
RECORD = "log.json"

_TRUTH_SCHEMA = pa.schema([("row", pa.int64()), ("label", pa.uint8()), ("probability", pa.float64())])


@dataclass(frozen=True, kw_only=True)
class SyntheticLog:
    """A written log.

    Attributes:
        path: The log, in Criteo's raw format.
        truth: Parquet file with row number, label and true probability of each row.
        rows: Number of rows.
        seed: Seed of the planted model and of the rows.
    """

    path: str
    truth: str
    rows: int
    seed: int


def write_synthetic(output_dir: str, rows: int, seed: int) -> SyntheticLog:
    """Write a planted log, block by block in bounded memory; nothing happens when it is there.

    Args:
        output_dir: Local folder for the log and the truth.
        rows: Number of rows.
        seed: Same seed and rows, same bytes.

    Raises:
        OptionError: no rows are asked for, or the folder is not local.
    """
    if rows < 1:
        raise OptionError(f"--rows {rows}: a log needs at least one row")
    if not storage.is_local(output_dir):
        raise OptionError(
            f"--output {output_dir}: a synthetic log is written to a local folder; give a local path"
        )
    folder = storage.local_path(storage.absolute(output_dir))
    log = SyntheticLog(path=str(folder / LOG), truth=str(folder / TRUTH), rows=rows, seed=seed)
    record = {"generator": GENERATOR_VERSION, "rows": rows, "seed": seed}
    if _is_written(folder, record):
        return log
    folder.mkdir(parents=True, exist_ok=True)
    model = PlantedModel(seed)
    temporary = [folder / f".{name}{storage.TEMPORARY_SUFFIX}" for name in (LOG, TRUTH)]
    with (
        temporary[0].open("wb") as text,
        pq.ParquetWriter(temporary[1], _TRUTH_SCHEMA) as truth,
        console.progress("writing the synthetic log", rows) as advance,
    ):
        token_text = [hex_text(model.token_codes(field)) for field in range(len(CARDINALITIES))]
        for block, first in enumerate(range(0, rows, BLOCK_ROWS)):
            count = min(BLOCK_ROWS, rows - first)
            planted = model.rows(block, count)
            text.write(_to_text(planted, token_text))
            numbers = np.arange(first, first + count)
            truth.write_table(
                pa.Table.from_arrays(
                    [pa.array(numbers), pa.array(planted.label), pa.array(planted.probability)],
                    schema=_TRUTH_SCHEMA,
                )
            )
            advance(count)
    # The log appears last: it is never there without its record.
    temporary[1].replace(folder / TRUTH)
    storage.write_json(str(folder / RECORD), record)
    temporary[0].replace(folder / LOG)
    return log


def _is_written(folder: Path, record: dict[str, int]) -> bool:
    """Whether the very log is there; another synthetic log is removed, any other file is not.

    Raises:
        OptionError: a log of that name is there that was not written here.
    """
    if (folder / LOG).exists():
        if not (folder / RECORD).exists():
            raise OptionError(
                f"{folder / LOG}: not a synthetic log; move it away, or read it with --source criteo --input"
            )
        if (folder / TRUTH).exists() and storage.read_json(str(folder / RECORD)) == record:
            return True
    for name in (LOG, TRUTH, RECORD):
        (folder / name).unlink(missing_ok=True)
    return False


def _to_text(planted: PlantedRows, token_text: list[pl.Series]) -> bytes:
    """Rows as Criteo's text."""
    columns = {"label": pl.Series(planted.label)}
    for n in range(INTEGERS):
        values = pa.array(planted.integers[:, n], mask=planted.integer_missing[:, n])
        columns[f"I{n + 1}"] = pl.Series(values)
    for n, text in enumerate(token_text):
        columns[f"C{n + 1}"] = text.extend_constant(None, 1).gather(planted.ids[:, n])
    return pl.DataFrame(columns).write_csv(separator="\t", include_header=False).encode()


class SyntheticSource(CriteoSource):
    """A planted log; reads like Criteo's and knows the best AUC any model can reach on it.

    Args:
        log: What ``write_synthetic`` returned.
        block_bytes: As for ``CriteoSource``.
    """

    kind = "synthetic"

    def __init__(self, log: SyntheticLog, *, block_bytes: int | None = None) -> None:
        super().__init__([log.path], block_bytes=block_bytes)
        self.log = log

    def identity(self) -> dict[str, Any]:
        """The log's seed and rows too."""
        return {**super().identity(), "generator": GENERATOR_VERSION, "log": asdict(self.log)}

    def facts(self, split_of: SplitOf) -> Mapping[str, Any]:
        """AUC and log loss of the true probabilities on the test rows (on all rows without any)."""
        test = SPLITS.index("test")
        on_test, on_all = _Score(), _Score()
        for labels, probabilities, splits in self._truth(split_of):
            on_all.add(labels, probabilities)
            on_test.add(labels[splits == test], probabilities[splits == test])
        score, split = (on_test, "test") if on_test.rows else (on_all, "all")
        return {
            "bayes_auc": score.auc(),
            "bayes_log_loss": score.log_loss(),
            "bayes_split": split,
            "synthetic": {"rows": self.log.rows, "seed": self.log.seed, "generator": GENERATOR_VERSION},
        }

    def _truth(self, split_of: SplitOf) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        with pq.ParquetFile(Path(self.log.truth)) as file:
            for batch in file.iter_batches(batch_size=BLOCK_ROWS):
                numbers, labels, probabilities = (column.to_numpy() for column in batch.columns)
                yield labels, probabilities, split_of(0, numbers)


class _Score:
    """AUC and log loss in bounded memory: a fine histogram of the probabilities per label.

    Two rows whose probabilities differ by less than 2^-22 count as tied, which moves the AUC by
    less than 1e-6.
    """

    def __init__(self) -> None:
        self.histogram = np.zeros((2, HISTOGRAM_BINS), dtype=np.int64)
        self.loss = 0.0
        self.rows = 0

    def add(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        bins = np.minimum((probabilities * HISTOGRAM_BINS).astype(np.int64), HISTOGRAM_BINS - 1)
        for label in (0, 1):
            np.add.at(self.histogram[label], bins[labels == label], 1)
        self.loss -= float(np.log(np.where(labels == 1, probabilities, 1 - probabilities)).sum())
        self.rows += len(labels)

    def auc(self) -> float | None:
        negatives, positives = self.histogram
        if not negatives.any() or not positives.any():
            return None
        below = np.cumsum(negatives) - negatives / 2
        return round(float((positives * below).sum() / (float(positives.sum()) * float(negatives.sum()))), 6)

    def log_loss(self) -> float:
        return round(self.loss / self.rows, 6)
