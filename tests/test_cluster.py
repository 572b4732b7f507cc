from __future__ import annotations

import pytest

from afm_dist.cluster import check_workers, cpus_per_worker
from afm_dist.errors import OptionError


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
    [
        ([8], 1, 8),
        ([8], 3, 2),
        ([2, 1], 1, 2),  # three CPUs, but no node has three
        ([2, 1], 3, 1),
        ([0, 8, 8], 4, 4),
        ([3, 3], 4, 1),
        ([2], 3, 0),
        ([0], 1, 0),
        ([], 1, 0),
    ],
)
def test_workers_get_equal_shares_of_whole_nodes(nodes: list[int], workers: int, cpus: int) -> None:
    assert cpus_per_worker(nodes, workers) == cpus


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(workers: int) -> None:
    with pytest.raises(OptionError, match=f"--workers {workers}: must be at least 1"):
        check_workers(workers)
