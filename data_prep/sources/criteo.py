"""Criteo's click log: 40 tab-separated fields without a header; plain, gzip or zstd.

Label, I1 to I13 (integers), C1 to C26 (8 lower-case hex digits); any field but the label may be
empty. Kaggle's ``train.txt`` and the 24 files ``day_0.gz`` … of the terabyte log have this format.
"""

from __future__ import annotations

import polars as pl

from data_prep.sources.short_texts import hex_text, hex_tokens, integers
from data_prep.sources.source import RawField
from data_prep.sources.text_log import FormatError, TextField, TextLog

INTEGERS = 13
TOKENS = 26
LABEL = "label"


class CriteoSource(TextLog):
    """Criteo's raw log."""

    kind = "criteo"
    label = LABEL
    token_type: pl.DataType = pl.UInt32()
    delimiter = "\t"
    names = (LABEL, *(f"I{n}" for n in range(1, 1 + INTEGERS)), *(f"C{n}" for n in range(1, 1 + TOKENS)))
    label_position = 0
    layout = (
        *(
            TextField(
                position=n,
                field=RawField(name=f"I{n}", kind="numeric"),
                parse=integers,
                fault="not an integer",
            )
            for n in range(1, 1 + INTEGERS)
        ),
        *(
            TextField(
                position=INTEGERS + n,
                field=RawField(name=f"C{n}", kind="categorical"),
                parse=hex_tokens,
                fault="not 8 lower-case hex digits",
            )
            for n in range(1, 1 + TOKENS)
        ),
    )

    def check_first_line(self, path: str, line: bytes) -> None:
        """Criteo's lines have tabs."""
        if b"\t" not in line:
            raise FormatError(
                f"{path}:1: no tab in the first line; --source criteo reads 40 tab-separated fields"
            )

    def token_text(self, tokens: pl.Series) -> pl.Series:
        """Eight hex digits, or the empty text."""
        text = hex_text(tokens.fill_null(0).to_numpy())
        return pl.select(pl.when(tokens.is_null()).then(pl.lit("")).otherwise(text)).to_series()
