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
    """

    suffix: str
    separator: str
    header: bool
    leading: Callable[[PlantedRows], dict[str, pl.Series]]


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
    "avazu": TextFormat(suffix="csv", separator=",", header=True, leading=_avazu_columns),
}


class LineWriter:
    """Writes rows of one model in the format of its shape.

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

    def write(self, rows: PlantedRows, count: int, file: BinaryIO, *, first: bool) -> None:
        """Append the first ``count`` rows of a block; ``first``: they begin the file."""
        columns = self.format.leading(rows)
        for index, (name, texts) in enumerate(self._tokens.items()):
            columns[name] = texts.gather(rows.ids[:, index])
        pl.DataFrame(columns).head(count).write_csv(
            file, separator=self.format.separator, include_header=self.format.header and first
        )


def _token_texts(model: PlantedModel, index: int) -> list[str]:
    """A field's tokens by rank."""
    integers = model.shape.tokens[index].integers
    if integers:
        return [str(value) for value in integers]
    digits = model.token_codes(index).astype(">u4").tobytes().hex()
    return [digits[start : start + 8] for start in range(0, len(digits), 8)]
