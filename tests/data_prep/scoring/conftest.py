from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from afm_dist.runtime.resources import ONE_CPU
from data_prep.protocol import Protocol
from data_prep.scoring import pipeline
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.in_this_process import in_this_process
from tests.data_prep.scoring.models import Trained, train

ROWS = 600


@pytest.fixture(autouse=True)
def here() -> Iterator[pytest.MonkeyPatch]:
    """``prepare`` and ``predict`` without Ray: their tasks run here, one after the other."""
    with in_this_process() as patch:
        patch.setattr(ray, "get", lambda references: references)
        patch.setattr(pipeline, "ensure_ray", lambda **_: None)
        patch.setattr(pipeline, "task_resources", lambda _: ONE_CPU)
        yield patch


def clicks(rows: int = ROWS, seed: int = 0) -> list[list[str]]:
    """Rows of user, ad, price and label; users skewed, some values missing."""
    generator = random.Random(seed)
    return [
        [
            f"u{int(generator.paretovariate(0.8))}",
            generator.choice(["", "a", "b", "ü"]),
            "" if generator.random() < 0.1 else f"{generator.expovariate(0.1):.3f}",
            str(int(generator.random() < 0.3)),
        ]
        for _ in range(rows)
    ]


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    path.write_text("".join(",".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    return path


HEADER = ["user", "ad", "price", "click"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model for a CSV of clicks."""
    folder = tmp_path_factory.mktemp("trained")
    with in_this_process():
        log = write_csv(folder / "clicks.csv", HEADER, clicks())
        source = TabularSource([str(log)], ColumnOptions(label="click"))
        return train(log, source, Protocol(), folder)
