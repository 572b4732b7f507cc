"""Training rows in random order, against a permutation that is held in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.errors import DataError
from data_prep import shuffle
from data_prep.permutation import Permutation
from data_prep.shards import shard_sizes
from data_prep.shuffle import RowRun, Shuffle, cut_into_runs, make_shuffle

COLUMNS = 2


def _rows(first: int, count: int) -> np.ndarray:
    """Rows told apart by their words: row k holds k and −k."""
    numbers = np.arange(first, first + count, dtype=np.int32)
    return np.stack([np.zeros_like(numbers), numbers, -numbers], axis=1)


def _gathered(shuffled: Shuffle, runs: list[RowRun]) -> list[int]:
    for run in runs:
        shuffled.write_run(run, _rows(run.first_row, run.rows))
    sizes = [(run.path, run.rows) for run in runs]
    buckets = [shuffled.read_bucket(index, sizes) for index in range(len(shuffled.buckets))]
    rows = np.concatenate(buckets)
    assert (rows[:, 1] == -rows[:, 2]).all()
    return [int(number) for number in rows[:, 1]]


@settings(deadline=None, max_examples=60)
@given(
    part_rows=st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any),
    rows_per_shard=st.integers(1, 60),
    seed=st.integers(0, 5),
    fan=st.integers(1, 8),
    memory_rows=st.integers(1, 100),
)
def test_runs_and_buckets_of_any_size_give_the_permuted_rows(
    tmp_path_factory: pytest.TempPathFactory,
    part_rows: list[int],
    rows_per_shard: int,
    seed: int,
    fan: int,
    memory_rows: int,
) -> None:
    n = sum(part_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "FAN", fan)
        patch.setattr(shuffle, "MEMORY_BYTES", memory_rows * 4 * (1 + COLUMNS))
        shuffled = make_shuffle(n, rows_per_shard, COLUMNS, seed)
        runs = cut_into_runs(part_rows, shuffled, str(tmp_path_factory.mktemp("runs")))

        gathered = _gathered(shuffled, runs)

    assert gathered == np.argsort(Permutation(n=n, seed=seed)(np.arange(n))).tolist()
    assert [size for b in shuffled.buckets for size in b.sizes] == shard_sizes(n, rows_per_shard)
    assert all(run.rows <= max(memory_rows, max(part_rows)) for run in runs)
    assert all(sum(b.sizes) <= max(memory_rows, max(b.sizes)) for b in shuffled.buckets)


def test_memory_is_bounded_and_files_are_few_however_many_rows_there_are() -> None:
    rows_in_memory = shuffle.rows_in_memory(1 + 40)
    for rows in (10**6, 10**8, 4 * 10**9):
        shuffled = make_shuffle(rows, 100_000, 40, 0)
        runs = cut_into_runs([60_000] * (rows // 60_000), shuffled, "runs")

        most = max(2 * shuffle.FAN, 2 * rows // rows_in_memory)
        assert len(shuffled.buckets) <= most
        assert len(runs) <= most
        assert max(sum(b.sizes) for b in shuffled.buckets) <= rows_in_memory
        assert max(run.rows for run in runs) <= rows_in_memory


def test_what_becomes_of_a_run_of_which_a_byte_was_changed_is_never_another_row(tmp_path: Path) -> None:
    shuffled = make_shuffle(40, 7, COLUMNS, 0)
    runs = cut_into_runs([25, 15], shuffled, str(tmp_path))
    _gathered(shuffled, runs)
    path = Path(runs[0].path)
    whole = path.read_bytes()
    sizes = [(run.path, run.rows) for run in runs]

    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"run-00000: damaged; run the same command again"):
            for index in range(len(shuffled.buckets)):
                shuffled.read_bucket(index, sizes)
    for length in (0, 10, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="run-00000: damaged"):
            for index in range(len(shuffled.buckets)):
                shuffled.read_bucket(index, sizes)
