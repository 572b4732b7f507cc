from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from afm_dist.dataset.batch import Batch, rebatch
from afm_dist.dataset.manifest import Manifest


def numbered(rows: int, first: int = 0) -> Batch:
    values = torch.arange(first, first + rows, dtype=torch.int32)
    return Batch(values[:, None], values[:, None].float(), values.float())


def parts_of(sizes: list[int]) -> Iterator[Batch]:
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    return (numbered(rows, int(start)) for rows, start in zip(sizes, starts, strict=False))


def numbers(batches: list[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.labels]


@given(sizes=st.lists(st.integers(0, 30), max_size=12), batch_size=st.integers(1, 40))
def test_rebatching_keeps_the_rows_in_batches_of_exact_size(sizes: list[int], batch_size: int) -> None:
    batches = list(rebatch(parts_of(sizes), repeat(batch_size)))

    assert numbers(batches) == list(range(sum(sizes)))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert not batches or 0 < len(batches[-1]) <= batch_size


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    wanted=st.lists(st.integers(0, 40), max_size=12),
)
def test_rebatching_gives_the_sizes_asked_for_as_long_as_there_are_rows(
    sizes: list[int], wanted: list[int]
) -> None:
    enough = [size for i, size in enumerate(wanted) if sum(wanted[: i + 1]) <= sum(sizes)]

    batches = list(rebatch(parts_of(sizes), wanted))

    assert [len(batch) for batch in batches[: len(enough)]] == enough
    assert numbers(batches) == list(range(min(sum(wanted), sum(sizes))))


def test_rows_are_taken_in_the_order_asked_for() -> None:
    taken = numbered(10).take(torch.tensor([7, 0, 7]))

    assert taken.ids.tolist() == [[7], [0], [7]]
    assert taken.numeric.tolist() == [[7.0], [0.0], [7.0]]
    assert taken.labels.tolist() == [7.0, 0.0, 7.0]


def test_room_has_the_shape_and_types_of_rows(dataset: Manifest) -> None:
    room = Batch.room(dataset, 5)

    assert (room.ids.shape, room.numeric.shape, room.labels.shape) == ((5, 2), (5, 1), (5,))
    assert (room.ids.dtype, room.numeric.dtype, room.labels.dtype) == (
        torch.int32,
        torch.float32,
        torch.float32,
    )
