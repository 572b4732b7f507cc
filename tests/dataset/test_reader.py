from __future__ import annotations

from typing import Any

import pytest
import torch

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches, read_shard
from afm_dist.dataset.shard import Columns, OpenShard
from tests.small_dataset import ROW_GROUP_ROWS


@pytest.mark.parametrize("batch_size", [1, 64, 400, 437, 5000])
def test_batches_of_shards_hold_their_rows_in_order(dataset: Manifest, batch_size: int) -> None:
    shards = dataset.shards("train")
    whole = Batch.concatenate([read_shard(dataset, shard) for shard in shards])

    batches = list(read_batches(dataset, shards, batch_size))

    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    joined = Batch.concatenate(batches)
    assert torch.equal(joined.ids, whole.ids)
    assert torch.equal(joined.numeric, whole.numeric)
    assert torch.equal(joined.labels, whole.labels)


def test_no_more_row_groups_are_decoded_than_a_batch_needs(
    dataset: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    read_group = OpenShard.read_group

    def watched(self: OpenShard, *arguments: Any) -> Columns:
        decoded.append(len(read_group(self, *arguments)))
        return read_group(self, *arguments)

    monkeypatch.setattr(OpenShard, "read_group", watched)

    next(read_batches(dataset, dataset.shards("train"), ROW_GROUP_ROWS + 1))

    assert decoded == [ROW_GROUP_ROWS] * 2
