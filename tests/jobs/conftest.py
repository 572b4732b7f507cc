"""One compression of a small CSV, shared by the tests that look at its results."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.commands import succeed

ROWS = 6_000


def write_clicks(path: Path, rows: int = ROWS, *, header: str = "click") -> None:
    """A click log whose label depends on the ad, the hour and the user's age."""
    generator = random.Random(7)
    lines = [f"{header},user,ad,site,hour,age"]
    for _ in range(rows):
        user, ad, site = generator.randrange(400), generator.randrange(60), generator.randrange(25)
        hour, age = generator.randrange(24), generator.uniform(18, 80)
        chance = 0.1 + 0.35 * (ad % 3 == 0) + 0.2 * (hour >= 18) + 0.2 * (age < 30)
        label = int(generator.random() < chance)
        lines.append(f"{label},u{user},a{ad},s{site},{hour},{age:.1f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Compressed:
    """A finished run and what it printed."""

    data: str
    trained: str
    output: str
    printed: str

    @property
    def command(self) -> list[str]:
        """The command that made it."""
        return compress_command(self.data, self.trained, self.output)


def compress_command(data: str, trained: str, output: str) -> list[str]:
    """Compress a small model with small ranks."""
    return [
        "jobs/compress.py",
        *("--data", data, "--checkpoint", f"{trained}/checkpoint", "--output", output),
        *("--mlp-rank", "8", "--embedding-dim", "2", "--stream-check"),
    ]


@pytest.fixture(scope="session")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    """Prepare, train and compress a small CSV with the commands of the README."""
    folder = tmp_path_factory.mktemp("compressed")
    write_clicks(folder / "clicks.csv")
    data, trained, output = (str(folder / name) for name in ("data", "trained", "compressed"))
    succeed(
        "jobs/prepare.py",
        *("--source", "tabular", "--input", str(folder / "clicks.csv"), "--label", "click"),
        *("--output", data, "--rows-per-shard", "1000"),
    )
    succeed(
        "jobs/train.py",
        *("--data", data, "--model", "deepfm", "--output", trained, "--batch-size", "200"),
        *("--hidden", "32", "24", "16", "--embedding-dim", "8"),
    )
    printed = succeed(*compress_command(data, trained, output))
    return Compressed(data, trained, output, printed)
