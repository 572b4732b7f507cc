from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster

from tests.faults.drivers import Driver

OBJECT_STORE_BYTES = 80_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster whose nodes are all on this machine: at first a head without CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        # Else every ray.init() on this machine would connect to this cluster.
        patch.setattr("ray._private.utils.write_ray_address", lambda *arguments, **options: None)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            },
        )
    yield cluster
    cluster.shutdown()


@pytest.fixture
def driver(cluster: Cluster) -> Iterator[Driver]:
    driver = Driver(cluster.address)
    yield driver
    driver.close()
