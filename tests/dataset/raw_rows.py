"""Raw rows in plain Python, and the dataset directory that the contract makes of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afm_dist.dataset.manifest import Field, Manifest, Shard
from tests.small_dataset import write_shard

TOKEN_FIELDS = ("ad", "site", "hour")
HELD_OUT = ("validation", "test")
VOCABULARY_GROUP_ROWS = 7


@dataclass(frozen=True)
class Row:
    """One raw row; a missing token is empty, a missing number None."""

    split: str
    label: int
    tokens: dict[str, str]
    age: float | None


def random_rows(n_rows: int, seed: int) -> list[Row]:
    """``ad`` has a heavy tail, ``site`` is often missing, ``hour`` has few tokens."""
    generator = random.Random(seed)

    def token(name: str) -> str:
        if name == "ad":
            return f"a{int(generator.paretovariate(0.6))}"
        if name == "site":
            return "" if generator.random() < 0.4 else f"s{int(generator.expovariate(0.2))}"
        return str(generator.randrange(5))

    return [
        Row(
            split=generator.choices(("train", *HELD_OUT), (8, 1, 1))[0],
            label=int(generator.random() < 0.2),
            tokens={name: token(name) for name in TOKEN_FIELDS},
            age=None if generator.random() < 0.1 else generator.gauss(1, 2),
        )
        for _ in range(n_rows)
    ]


def training_counts(rows: list[Row], name: str) -> Counter[str]:
    return Counter(row.tokens[name] for row in rows if row.split == "train")


def known_tokens(rows: list[Row], name: str, threshold: int) -> list[str]:
    """The tokens that have an id of their own, in order of id from 1."""
    counts = training_counts(rows, name)
    return sorted((t for t in counts if counts[t] >= threshold), key=lambda t: (-counts[t], t))


def write_dataset(location: Path, rows: list[Row], threshold: int) -> Manifest:
    """The dataset directory, its shards cut to their label; facts as a preparation records them."""
    fields, vocabulary, unknown = [], {}, {name: {} for name in HELD_OUT}
    for name in TOKEN_FIELDS:
        counts, known = training_counts(rows, name), known_tokens(rows, name, threshold)
        own = [counts[token] for token in known]
        columns = {
            "id": np.arange(len(known) + 1, dtype=np.int32),
            "token": [None, *known],
            "count": np.array([counts.total() - sum(own), *own]),
        }
        path = f"vocabulary/{name}.parquet"
        vocabulary[name] = write_shard(str(location), path, columns, row_group_rows=VOCABULARY_GROUP_ROWS)
        fields.append(Field(name=name, kind="categorical", cardinality=len(known) + 1, column=name,
                            transform="token"))  # fmt: skip
        for split in HELD_OUT:
            here = [row for row in rows if row.split == split]
            unknown[split][name] = sum(row.tokens[name] not in known for row in here) / len(here)
    splits: dict[str, tuple[Shard, ...]] = {}
    for split in ("train", *HELD_OUT):
        labels = np.array([row.label for row in rows if row.split == split], dtype=np.uint8)
        splits[split] = tuple(
            write_shard(str(location), f"{split}/part-{i:05d}.parquet", {"click": part})
            for i, part in enumerate(np.array_split(labels, 3))
        )
    manifest = Manifest(
        location=str(location),
        label="click",
        fields=(*fields, Field(name="age", kind="numeric", mean=1.25, deviation=2.5, transform="log")),
        splits=splits,
        vocabulary=vocabulary,
        preset="tiny",
        seed=9,
        sources=({"name": "log.csv", "bytes": 321, "sha256": "ab" * 32},),
        facts={
            "source": "tabular",
            "threshold": threshold,
            "rows_read": len(rows) + 2,
            "rows_rejected": 2,
            "splits": {
                split: {"positives": sum(row.label for row in rows if row.split == split)} for split in splits
            },
            "missing_share": {
                **{name: sum(not row.tokens[name] for row in rows) / len(rows) for name in TOKEN_FIELDS},
                "age": sum(row.age is None for row in rows) / len(rows),
            },
            "unknown_share": unknown,
            "bayes_auc": 0.75,
            "bayes_log_loss": 0.4,
            "bayes_split": "test",
        },
    )
    manifest.save()
    return manifest
