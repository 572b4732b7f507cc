from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.counts import read_counts
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_shard
from afm_dist.errors import DataError
from tests.small_dataset import write_shard, write_vocabulary


def test_counts_are_those_of_the_training_rows(dataset: Manifest) -> None:
    whole = Batch.concatenate([read_shard(dataset, shard) for shard in dataset.shards("train")])

    counts = read_counts(dataset)

    assert list(counts) == ["site", "ad"]
    for i, (name, size) in enumerate({"site": 30, "ad": 7}.items()):
        np.testing.assert_array_equal(counts[name], np.bincount(whole.ids[:, i], minlength=size))


def with_vocabulary(dataset: Manifest, **columns: Any) -> Manifest:
    """The dataset with another vocabulary of ``ad``, its checksum in order."""
    file = write_shard(dataset.location, "vocabulary/ad.parquet", columns)
    return replace(dataset, vocabulary={**dataset.vocabulary, "ad": file})


@pytest.mark.parametrize("change", ["one more", "one id less", "another id", "not a vocabulary"])
def test_a_vocabulary_that_disagrees_with_the_manifest_is_refused_by_name(
    dataset: Manifest, change: str
) -> None:
    counts = read_counts(dataset)["ad"].numpy().copy()
    ids = np.arange(len(counts), dtype=np.int32)
    if change == "one more":
        counts[2] += 1
    elif change == "one id less":
        counts[0] += counts[-1]
        ids, counts = ids[:-1], counts[:-1]
    elif change == "another id":
        ids[3] = 99
    columns = (
        {"other": [1]}
        if change == "not a vocabulary"
        else {"id": ids, "token": ids.astype(str), "count": counts}
    )
    broken = with_vocabulary(dataset, **columns)

    with pytest.raises(DataError, match=r"vocabulary/ad\.parquet") as error:
        read_counts(broken)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "counts moved"])
def test_a_damaged_vocabulary_is_refused_by_name(dataset: Manifest, damage: str) -> None:
    path = Path(dataset.location, "vocabulary", "ad.parquet")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-30])
    elif damage == "altered":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    else:
        # As many ids and occurrences as before: only the checksum tells.
        counts = read_counts(dataset)["ad"].numpy().copy()
        counts[0] += 1
        counts[1] -= 1
        write_vocabulary(dataset.location, "ad", counts)

    with pytest.raises(DataError, match=r"vocabulary/ad\.parquet"):
        read_counts(dataset)
