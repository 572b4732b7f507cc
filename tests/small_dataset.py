"""A dataset directory written directly, without ``data_prep``: what the contract says, no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from afm_dist import storage
from afm_dist.dataset.manifest import Field, Manifest, Shard

FIELDS = (
    Field(name="site", kind="categorical", cardinality=30),
    Field(name="ad", kind="categorical", cardinality=7),
    Field(name="age", kind="numeric", mean=0.5, deviation=2.0),
)
SPLITS = {"train": (400, 37, 250, 113, 200), "validation": (300, 200), "test": (150,)}
ROW_GROUP_ROWS = 96


def write_shard(
    location: str, path: str, columns: Mapping[str, Any], *, row_group_rows: int = ROW_GROUP_ROWS
) -> Shard:
    """Write one Parquet file and describe it as a manifest does."""
    target = Path(location, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), target, row_group_size=row_group_rows)
    content = target.read_bytes()
    rows = len(next(iter(columns.values())))
    return Shard(path=path, rows=rows, bytes=len(content), sha256=storage.sha256(content))


def random_columns(
    rows: int, generator: np.random.Generator, fields: tuple[Field, ...]
) -> dict[str, pa.Array]:
    """Skewed ids, normal numbers of which a tenth is null, labels that follow from the ids."""
    columns: dict[str, pa.Array] = {}
    logits = np.zeros(rows)
    for field in fields:
        if field.kind == "categorical":
            ids = np.minimum(generator.zipf(1.5, rows) - 1, field.cardinality - 1).astype(np.int32)
            effects = np.random.default_rng(field.cardinality).normal(size=field.cardinality)
            logits += 1.5 * effects[ids]
            columns[field.name] = pa.array(ids)
        else:
            values = generator.normal(size=rows).astype(np.float32)
            columns[field.name] = pa.array(values, mask=generator.random(rows) < 0.1)
    labels = (generator.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    return {"click": pa.array(labels), **columns}


def write_dataset(
    location: Path | str,
    *,
    splits: dict[str, tuple[int, ...]] | None = None,
    fields: tuple[Field, ...] = FIELDS,
    seed: int = 0,
) -> Manifest:
    """Shards of random rows, the vocabularies with their counts, and the manifest."""
    location = str(location)
    generator = np.random.default_rng(seed)
    shards: dict[str, tuple[Shard, ...]] = {}
    counts = {f.name: np.zeros(f.cardinality, np.int64) for f in fields if f.kind == "categorical"}
    for split, sizes in (splits or SPLITS).items():
        parts = []
        for i, rows in enumerate(sizes):
            columns = random_columns(rows, generator, fields)
            parts.append(write_shard(location, f"{split}/part-{i:05d}.parquet", columns))
            if split == "train":
                for name, count in counts.items():
                    count += np.bincount(columns[name].to_numpy(), minlength=len(count))
        shards[split] = tuple(parts)
    vocabulary = {name: write_vocabulary(location, name, count) for name, count in counts.items()}
    manifest = Manifest(location=location, label="click", fields=fields, splits=shards, vocabulary=vocabulary)
    manifest.save()
    return manifest


def relabelled(dataset: Manifest, split: str, label: int) -> Manifest:
    """The same dataset, its split written anew with one label for all rows."""
    parts = []
    for shard in dataset.shards(split):
        table = pq.read_table(Path(dataset.location, shard.path))
        columns = {name: table[name] for name in table.column_names}
        columns[dataset.label] = pa.array(np.full(shard.rows, label, np.uint8))
        parts.append(write_shard(dataset.location, shard.path, columns))
    changed = replace(dataset, splits={**dataset.splits, split: tuple(parts)})
    changed.save()
    return changed


def write_vocabulary(location: str, name: str, counts: np.ndarray) -> Shard:
    """``vocabulary/<name>.parquet`` with made-up tokens."""
    ids = np.arange(len(counts), dtype=np.int32)
    columns = {"id": ids, "token": [f"{name}-{i}" for i in ids], "count": counts}
    return write_shard(location, f"vocabulary/{name}.parquet", columns)
