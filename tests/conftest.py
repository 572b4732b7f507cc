from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from afm_dist.dataset.manifest import Manifest
from tests.object_store.faulty_proxy import FaultyProxy
from tests.object_store.servers import bucket, gs, gs_bucket, s3, store_proxy
from tests.small_dataset import write_dataset

__all__ = ["bucket", "dataset", "gs", "gs_bucket", "local_ray", "ray_with_a_gpu", "s3", "store_proxy"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what takes minutes to make run in one process, and so do those of a file."""
    for item in items:
        shared = "compressed" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("compressed" if shared else str(item.path)))


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """What a test lets this process compute as workers and drivers do ends with it."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def local_ray(store_proxy: FaultyProxy) -> Iterator[None]:
    """A Ray of two CPUs, shared by all tests of a session; one that a test left behind will do."""
    if not ray.is_initialized():
        _start_ray()
    yield
    ray.shutdown()


@pytest.fixture
def ray_with_a_gpu(local_ray: None) -> None:
    """The same, with a GPU in name only: what asks for it finds that torch cannot use it."""
    if not ray.is_initialized() or "GPU" not in ray.cluster_resources():
        ray.shutdown()
        _start_ray()


def _start_ray() -> None:
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Manifest:
    """A dataset directory of a test's own, which it may damage."""
    return write_dataset(tmp_path / "data")
