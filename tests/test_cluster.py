from __future__ import annotations

import pytest

from afm_dist.cluster import cpus_per_worker


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
