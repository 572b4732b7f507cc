"""The tiny log of a record: two weeks of skewed, rare and missing tokens, a number, a label that follows."""

from __future__ import annotations

import random
from pathlib import Path

ROWS = 5_000
HEADER = "click,day,user,ad,site,hour,age"


def write_log(path: Path, rows: int = ROWS, *, seed: int = 7) -> None:
    """A CSV file with a header; the same bytes for the same seed."""
    generator = random.Random(seed)
    taste = [generator.gauss(0, 1) for _ in range(500)]
    lines = [HEADER]
    for row in range(rows):
        user = (
            min(int(generator.paretovariate(0.4)), 499)
            if generator.random() < 0.5
            else generator.randrange(500)
        )
        ad, site, hour = generator.randrange(60), generator.randrange(25), generator.randrange(24)
        age = f"{generator.uniform(18, 80):.1f}" if generator.random() > 0.05 else ""
        chance = 0.15 + 0.35 * (ad % 3 == 0) + 0.2 * (hour >= 18) + 0.15 * (taste[user] > 0.3)
        day = f"2024-05-{1 + 14 * row // rows:02d}"
        name = f"s{site}" if generator.random() > 0.04 else ""
        lines.append(f"{int(generator.random() < chance)},{day},u{user},a{ad},{name},h{hour},{age}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
