from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from afm_dist.dataset.manifest import Manifest
from tests.object_store.faulty_proxy import FaultyProxy
from tests.small_dataset import write_dataset


@pytest.fixture(scope="session")
def store_proxy() -> Iterator[FaultyProxy]:
    """Where S3 is for this process and all that it starts; the server itself is started when asked for."""
    proxy = FaultyProxy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def local_ray(store_proxy: FaultyProxy) -> Iterator[None]:
    """A Ray of two CPUs, shared by all tests of a session.

    The GPU is one in name only: what asks for it finds that torch cannot use it.
    """
    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture
def dataset(tmp_path: Path) -> Manifest:
    """A dataset directory of a test's own, which it may damage."""
    return write_dataset(tmp_path / "data")
