"""One compression of a small CSV by the README's commands, shared by the tests that look at its results."""

from __future__ import annotations

import random
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.commands import ROOT, succeed

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


# Added to the README's commands, so that the model is small.
SMALLER = {
    "prepare": ("--rows-per-shard", "1000"),
    "train": ("--batch-size", "200", "--hidden", "32", "24", "16", "--embedding-dim", "8"),
    "compress": ("--mlp-rank", "8", "--embedding-dim", "2", "--stream-check"),
}


@dataclass(frozen=True)
class Compressed:
    """A finished run, what it printed, and the figures of its evaluation."""

    data: str
    trained: str
    output: str
    printed: str
    figures: str

    @property
    def command(self) -> list[str]:
        """The command that made it."""
        return compress_command(self.data, self.trained, self.output)


def prepare_command(log: str, data: str) -> list[str]:
    """Prepare the clicks."""
    return [
        "jobs/prepare.py",
        *("--source", "tabular", "--input", log, "--label", "click"),
        *("--output", data, *SMALLER["prepare"]),
    ]


def train_command(data: str, trained: str) -> list[str]:
    """Train a small model."""
    return [
        "jobs/train.py",
        *("--data", data, "--model", "deepfm", "--output", trained, *SMALLER["train"]),
    ]


def compress_command(data: str, trained: str, output: str) -> list[str]:
    """Compress a small model with small ranks."""
    return [
        "jobs/compress.py",
        *("--data", data, "--checkpoint", f"{trained}/checkpoint", "--output", output),
        *SMALLER["compress"],
    ]


def readme_commands(folder: Path) -> list[list[str]]:
    """The README's commands for one's own data, with their paths below a folder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "clicks.csv" in text]
    commands = []
    for line in block.strip().splitlines():
        program, *words = shlex.split(line)
        assert program == "python", line
        commands.append(
            [
                str(folder / word) if word == "clicks.csv" or word.startswith(("data/", "runs/")) else word
                for word in words
            ]
        )
    return commands


@pytest.fixture(scope="session")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    """Prepare, describe, train, compress and evaluate a small CSV with the commands of the README."""
    folder = tmp_path_factory.mktemp("compressed")
    write_clicks(folder / "clicks.csv")
    printed = {}
    figures = str(folder / "figures.json")
    added = {**SMALLER, "evaluate": ("--json", figures)}
    for job, *options in readme_commands(folder):
        verb = Path(job).stem
        printed[verb] = succeed(job, *options, *(() if "--describe" in options else added[verb]))
    data, trained, output = (
        str(folder / name) for name in ("data/clicks", "runs/baseline", "runs/compressed")
    )
    return Compressed(data, trained, output, printed["compress"], figures)
