from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster
from ray.experimental import internal_kv

from tests.faults.drivers import Driver

OBJECT_STORE_BYTES = 80_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster whose nodes are all on this machine: at first a head without CPUs."""
    before = internal_kv.global_gcs_client
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
    # It takes the key-value client of the whole process with it, also that of a Ray which goes on.
    internal_kv.global_gcs_client = before


@pytest.fixture
def driver(cluster: Cluster) -> Iterator[Driver]:
    driver = Driver(cluster.address)
    yield driver
    driver.close()
