"""Planted rows as lines of Criteo's or Avazu's raw log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa

from data_prep.sources.planted import HOURS_PER_DAY, PlantedModel, PlantedRows
from data_prep.sources.planted_shapes import ShapeName

FIRST_HOUR = 14_10_21_00
HOURS_OF_NEXT_DAY = 100


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """A raw format.

    Attributes:
        suffix: Of the files' names.
        separator: Between two columns.
        header: Whether each file begins with the columns' names.
        leading: The columns before the categorical ones.
        time: Which of them grows with time, if any.
    """

    suffix: str
    separator: str
    header: bool
    leading: Callable[[PlantedRows], dict[str, pl.Series]]
    time: str | None = None


def _criteo_columns(rows: PlantedRows) -> dict[str, pl.Series]:
    columns = {"label": pl.Series(rows.label)}
    for n in range(rows.integers.shape[1]):
        columns[f"I{n + 1}"] = pl.Series(pa.array(rows.integers[:, n], mask=rows.integer_missing[:, n]))
    return columns


def _avazu_columns(rows: PlantedRows) -> dict[str, pl.Series]:
    days, hours = np.divmod(rows.hour, HOURS_PER_DAY)
    return {
        "id": pl.Series(rows.key),
        "click": pl.Series(rows.label),
        "hour": pl.Series(FIRST_HOUR + HOURS_OF_NEXT_DAY * days + hours),
    }


FORMATS: dict[ShapeName, TextFormat] = {
    "criteo": TextFormat(suffix="txt", separator="\t", header=False, leading=_criteo_columns),
    "avazu": TextFormat(suffix="csv", separator=",", header=True, leading=_avazu_columns, time="hour"),
}


class LineWriter:
    """Spells rows of one model in the format of its shape.

    Args:
        format: The raw format.
        model: Where the rows come from.
    """

    def __init__(self, format: TextFormat, model: PlantedModel) -> None:
        self.format = format
        self._tokens = {
            field.name: pl.Series([*_token_texts(model, index), field.missing_text], dtype=pl.String)
            for index, field in enumerate(model.shape.tokens)
        }

    def frame(self, rows: PlantedRows) -> pl.DataFrame:
        """Rows as the columns of the log."""
        columns = self.format.leading(rows)
        for index, (name, texts) in enumerate(self._tokens.items()):
            columns[name] = texts.gather(rows.ids[:, index])
        return pl.DataFrame(columns)

    def write(self, frame: pl.DataFrame, file: BinaryIO, *, first: bool) -> None:
        """Append rows as lines; ``first``: they begin the file."""
        header = self.format.header and first
        frame.write_csv(file, separator=self.format.separator, include_header=header)

    def truth(self, rows: PlantedRows) -> pl.DataFrame:
        """What stays hidden from a model: row number, label, true probability; and the time, to split by."""
        truth = pl.DataFrame({"row": rows.number, "label": rows.label, "probability": rows.probability})
        if self.format.time is None:
            return truth
        times = self.format.leading(rows)[self.format.time]
        return truth.with_columns(times.cast(pl.String).alias(self.format.time))


def _token_texts(model: PlantedModel, index: int) -> list[str]:
    """A field's tokens by rank."""
    integers = model.shape.tokens[index].integers
    if integers:
        return [str(value) for value in integers]
    digits = model.token_codes(index).astype(">u4").tobytes().hex()
    return [digits[start : start + 8] for start in range(0, len(digits), 8)]
