"""Avazu's click log: 24 comma-separated fields with a header; plain, gzip or zstd.

``id`` is left out, ``click`` is the label, and every other field is a token of at most eight
characters: eight hex digits, a small integer, or the hour as YYMMDDHH.
"""

from __future__ import annotations

import polars as pl

from data_prep.sources.short_texts import short_token_text, short_tokens
from data_prep.sources.source import RawField
from data_prep.sources.text_log import FormatError, TextField, TextLog

HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)
NAMES = tuple(HEADER.split(","))
LABEL = "click"
LEFT_OUT = "id"


class AvazuSource(TextLog):
    """Avazu's raw log."""

    kind = "avazu"
    label = LABEL
    token_type: pl.DataType = pl.UInt64()
    delimiter = ","
    names = NAMES
    header = HEADER.encode()
    first_line = 2
    label_position = NAMES.index(LABEL)
    layout = tuple(
        TextField(
            position=position,
            field=RawField(name=name, kind="categorical"),
            parse=short_tokens,
            fault="not UTF-8 text of at most 8 characters",
        )
        for position, name in enumerate(NAMES)
        if name not in (LABEL, LEFT_OUT)
    )

    def check_first_line(self, path: str, line: bytes) -> None:
        """Avazu's header, or another file."""
        if line != self.header:
            raise FormatError(
                f"{path}:1: the first line is not Avazu's header (id,click,hour,C1,…); "
                "read another table with --source tabular"
            )

    def token_text(self, tokens: pl.Series) -> pl.Series:
        """The token itself, or the empty text."""
        return short_token_text(tokens)
