"""Small raw logs, and the plain Python that says what is in them."""

from __future__ import annotations

import random
import re
from datetime import datetime, timedelta
from typing import Any

from data_prep.sources.avazu import HEADER as AVAZU_HEADER

INTEGER = re.compile(r"-?[0-9]{1,300}")
TOKEN = re.compile(r"[0-9a-f]{8}")

Row = list[Any]
"""The label, then the fields in order: float, str, or None where missing."""


def criteo_line(generator: random.Random) -> str:
    """One well-formed line with skewed tokens, missing values and negative I2."""
    label = str(int(generator.random() < 0.3))
    integers = [
        "" if generator.random() < 0.2 else str(int(generator.expovariate(0.02)) - 3 * (n == 1))
        for n in range(13)
    ]
    tokens = [
        "" if generator.random() < 0.1 else f"{int(generator.paretovariate(0.7)) * 2654435761 % 2**32:08x}"
        for _ in range(26)
    ]
    return "\t".join([label, *integers, *tokens])


def criteo_text(rows: int, seed: int = 0) -> str:
    generator = random.Random(seed)
    return "".join(criteo_line(generator) + "\n" for _ in range(rows))


def read_criteo_line(line: str) -> Row | None:
    """The fields of a line, or None when it is malformed."""
    fields = line.split("\t")
    if len(fields) != 40 or fields[0] not in ("0", "1"):
        return None
    integers, tokens = fields[1:14], fields[14:]
    if not all(value == "" or INTEGER.fullmatch(value) for value in integers):
        return None
    if not all(value == "" or TOKEN.fullmatch(value) for value in tokens):
        return None
    return [
        float(fields[0]),
        *(float(int(value)) if value else None for value in integers),
        *(value or None for value in tokens),
    ]


def avazu_line(generator: random.Random) -> str:
    """One well-formed line: two days of hours, hex tokens and small integers, some missing."""
    hour = datetime(2014, 10, 21) + timedelta(hours=generator.randrange(48))
    tokens = [
        f"{int(generator.paretovariate(0.7)) * 2654435761 % 2**32:08x}"
        if n % 2
        else str(int(generator.paretovariate(0.9)) % 10**6 - (n == 20))
        for n in range(21)
    ]
    for n in range(21):
        if generator.random() < 0.05:
            tokens[n] = ""
    label = str(int(generator.random() < 0.17))
    return ",".join([str(generator.getrandbits(64)), label, f"{hour:%y%m%d%H}", *tokens])


def avazu_text(rows: int, seed: int = 0) -> str:
    """Header and rows."""
    generator = random.Random(seed)
    return AVAZU_HEADER + "\n" + "".join(avazu_line(generator) + "\n" for _ in range(rows))


def read_avazu_line(line: str) -> Row | None:
    """The fields of a line but for its id, or None when it is malformed."""
    fields = line.split(",")
    if len(fields) != 24 or fields[1] not in ("0", "1"):
        return None
    if any(len(value.encode()) > 8 for value in fields[2:]):
        return None
    return [float(fields[1]), *(value or None for value in fields[2:])]
