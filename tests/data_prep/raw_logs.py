"""Small raw logs, and the plain Python that says what is in them."""

from __future__ import annotations

import random
import re

INTEGER = re.compile(r"-?[0-9]{1,18}")
TOKEN = re.compile(r"[0-9a-f]{8}")


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


def read_criteo_line(line: str) -> list[float | str | None] | None:
    """The fields of a line (missing = None), or None when it is malformed."""
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
