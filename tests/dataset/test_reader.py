from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import Batch, TrainingOrder, read_batches, read_counts, read_shard, rebatch
from afm_dist.errors import DataError
from tests.small_dataset import write_dataset, write_shard, write_vocabulary


def replaced(dataset: Manifest, **columns: Any) -> Manifest:
    """The dataset with a first training shard of other columns, its checksum in order."""
    first = dataset.shards("train")[0]
    table = pq.read_table(Path(dataset.location, first.path))
    for name, values in columns.items():
        table = (
            table.drop_columns([name])
            if values is None
            else table.set_column(table.column_names.index(name), name, values)
        )
    shard = write_shard(
        dataset.location,
        first.path,
        {name: table.column(name).combine_chunks() for name in table.column_names},
    )
    return replace(dataset, splits={**dataset.splits, "train": (shard, *dataset.shards("train")[1:])})


def read_first(dataset: Manifest) -> Batch:
    return read_shard(dataset, dataset.shards("train")[0])


# One shard ---------------------------------------------------------------------------------------


def test_a_shard_comes_back_as_it_was_written(dataset: Manifest) -> None:
    shard = dataset.shards("train")[0]
    table = pq.read_table(Path(dataset.location, shard.path))

    batch = read_first(dataset)

    assert len(batch) == shard.rows
    assert (batch.ids.dtype, batch.numeric.dtype, batch.labels.dtype) == (
        torch.int32,
        torch.float32,
        torch.float32,
    )
    np.testing.assert_array_equal(batch.ids[:, 0], table["site"])
    np.testing.assert_array_equal(batch.ids[:, 1], table["ad"])
    np.testing.assert_array_equal(batch.labels, table["click"])


def test_a_missing_number_is_the_mean(dataset: Manifest) -> None:
    column = pq.read_table(Path(dataset.location, dataset.shards("train")[0].path))["age"]
    assert column.null_count > 0

    numeric = read_first(dataset).numeric[:, 0].numpy()

    missing = column.is_null().to_numpy()
    np.testing.assert_array_equal(numeric[missing], 0.0)
    np.testing.assert_array_equal(numeric[~missing], column.drop_null())


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "altered"])
def test_a_damaged_shard_is_refused_by_name(dataset: Manifest, damage: str) -> None:
    path = Path(dataset.location, dataset.shards("train")[0].path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "longer":
        path.write_bytes(content + b"\0")
    else:
        position = len(content) // 2
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])

    with pytest.raises(DataError, match=r"train/part-00000\.parquet"):
        read_first(dataset)


@pytest.mark.parametrize("bad", [-1, 7, 2**31 - 1])
def test_an_id_outside_its_table_names_field_shard_and_id(dataset: Manifest, bad: int) -> None:
    ids = read_first(dataset).ids[:, 1].numpy().copy()
    ids[5] = bad
    broken = replaced(dataset, ad=pa.array(ids))

    with pytest.raises(DataError, match=rf"part-00000\.parquet: field 'ad' holds id {bad} outside .* 7 rows"):
        read_first(broken)


def test_a_missing_id_names_field_and_shard(dataset: Manifest) -> None:
    ids = read_first(dataset).ids[:, 1].numpy()
    mask = np.zeros(len(ids), bool)
    mask[3] = True
    broken = replaced(dataset, ad=pa.array(ids, mask=mask))

    with pytest.raises(DataError, match=r"part-00000\.parquet: field 'ad' .*missing"):
        read_first(broken)


def test_ids_that_are_no_integers_are_refused(dataset: Manifest) -> None:
    # Ids stored as float32 corrupt above 2**24.
    ids = read_first(dataset).ids[:, 1].numpy().astype(np.float32)
    broken = replaced(dataset, ad=pa.array(ids))

    with pytest.raises(DataError, match=r"part-00000\.parquet: field 'ad' .*float"):
        read_first(broken)


@pytest.mark.parametrize("bad", [2, None])
def test_a_label_other_than_0_and_1_names_the_shard(dataset: Manifest, bad: int | None) -> None:
    labels = [int(label) for label in read_first(dataset).labels]
    broken = replaced(dataset, click=pa.array([*labels[:-1], bad], pa.uint8()))

    with pytest.raises(DataError, match=r"part-00000\.parquet: labels other than 0 and 1"):
        read_first(broken)


def test_a_shard_without_a_column_names_both(dataset: Manifest) -> None:
    broken = replaced(dataset, ad=None)

    with pytest.raises(DataError, match=r"part-00000\.parquet: .*ad") as error:
        read_first(broken)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_parquet_is_refused_by_name(dataset: Manifest) -> None:
    first = dataset.shards("train")[0]
    content = b"label,site\n1,2\n"
    Path(dataset.location, first.path).write_bytes(content)
    shard = replace(first, bytes=len(content), sha256=__import__("hashlib").sha256(content).hexdigest())

    with pytest.raises(DataError, match=r"part-00000\.parquet: not a shard"):
        read_shard(dataset, shard)


# Batches -----------------------------------------------------------------------------------------


def numbered(rows: int, first: int = 0) -> Batch:
    values = torch.arange(first, first + rows, dtype=torch.int32)
    return Batch(values[:, None], values[:, None].float(), values.float())


@given(sizes=st.lists(st.integers(0, 30), max_size=12), batch_size=st.integers(1, 40))
def test_rebatching_keeps_the_rows_in_batches_of_exact_size(sizes: list[int], batch_size: int) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)

    batches = list(rebatch((numbered(n, int(a)) for n, a in zip(sizes, starts, strict=False)), batch_size))

    assert [int(row) for batch in batches for row in batch.labels] == list(range(sum(sizes)))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert not batches or 0 < len(batches[-1]) <= batch_size


@pytest.mark.parametrize("batch_size", [1, 64, 400, 437, 5000])
def test_batches_of_shards_hold_their_rows_in_order(dataset: Manifest, batch_size: int) -> None:
    shards = dataset.shards("train")
    whole = Batch.concatenate([read_shard(dataset, shard) for shard in shards])

    batches = Batch.concatenate(list(read_batches(dataset, shards, batch_size)))

    assert torch.equal(batches.ids, whole.ids)
    assert torch.equal(batches.numeric, whole.numeric)
    assert torch.equal(batches.labels, whole.labels)


# The order of training ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(tmp_path_factory.mktemp("log"))


def rows_of(batch: Batch) -> list[tuple[float, ...]]:
    columns = [*batch.ids.T.tolist(), *batch.numeric.T.tolist(), batch.labels.tolist()]
    return list(zip(*columns, strict=True))


def order(log: Manifest, **changes: Any) -> TrainingOrder:
    return TrainingOrder(**{"manifest": log, "batch_size": 64, "seed": 0, **changes})


def epoch_rows(log: Manifest, epoch: int = 0, **changes: Any) -> list[tuple[float, ...]]:
    return [row for batch in order(log, **changes).batches(epoch) for row in rows_of(batch)]


@pytest.mark.parametrize("batch_size", [1, 64, 250, 1000, 4096])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_sees_every_row_exactly_once(log: Manifest, batch_size: int, epoch: int) -> None:
    whole = Batch.concatenate([read_shard(log, shard) for shard in log.shards("train")])

    seen = epoch_rows(log, epoch, batch_size=batch_size)

    assert Counter(seen) == Counter(rows_of(whole))


def test_the_rows_are_shuffled(log: Manifest) -> None:
    whole = Batch.concatenate([read_shard(log, shard) for shard in log.shards("train")])

    assert epoch_rows(log) != rows_of(whole)


@pytest.mark.parametrize("batch_size", [1, 64, 250, 1000, 4096])
def test_steps_are_the_batches_of_an_epoch(log: Manifest, batch_size: int) -> None:
    batches = list(order(log, batch_size=batch_size).batches(0))

    assert len(batches) == order(log, batch_size=batch_size).steps
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("batch_size", [64, 333, 999])
def test_the_ranks_share_each_global_batch_out(log: Manifest, world_size: int, batch_size: int) -> None:
    alone = list(order(log, batch_size=batch_size).batches(0))

    ranks = [
        list(order(log, batch_size=batch_size, rank=rank, world_size=world_size).batches(0))
        for rank in range(world_size)
    ]

    assert {len(batches) for batches in ranks} == {len(alone)}
    for parts, batch in zip(zip(*ranks, strict=True), alone, strict=True):
        assert Counter(row for part in parts for row in rows_of(part)) == Counter(rows_of(batch))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("first_step", [0, 1, 6, 7, 15, 16])
def test_resuming_at_a_step_gives_the_batches_that_were_left(log: Manifest, first_step: int) -> None:
    for rank in range(2):
        stripes = order(log, rank=rank, world_size=2)

        resumed = [rows_of(batch) for batch in stripes.batches(1, first_step)]

        assert resumed == [rows_of(batch) for batch in stripes.batches(1)][first_step:]


def test_epochs_and_seeds_differ_and_each_repeats(log: Manifest) -> None:
    orders = [epoch_rows(log, epoch, seed=seed) for epoch in (0, 1) for seed in (0, 1)]

    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))
    assert epoch_rows(log, 1, seed=1) == orders[3]


@pytest.mark.parametrize("sizes", [(300,), (1,) * 60], ids=["rows of a shard", "shards"])
def test_rows_and_shards_are_permuted_anew_by_epoch_and_seed(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    log = write_dataset(tmp_path, splits={"train": sizes})

    orders = [epoch_rows(log, epoch, seed=seed) for epoch in (0, 1) for seed in (0, 1)]

    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


# Counts of the vocabulary ------------------------------------------------------------------------


def test_counts_are_those_of_the_training_rows(log: Manifest) -> None:
    whole = Batch.concatenate([read_shard(log, shard) for shard in log.shards("train")])

    counts = read_counts(log)

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
    columns = {"other": [1]} if change == "not a vocabulary" else {"id": ids, "count": counts}
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
