from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest
import torch

from afm_dist.runtime import machine
from afm_dist.runtime.machine import object_store_bytes, work_in_driver, work_with_threads

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("model", "shared", "store"),
    [
        (10 * MB, 20 * GB, 256 << 20),
        (2 * GB, 20 * GB, 4 * GB),
        (2 * GB, None, 4 * GB),  # no file system in memory: Ray finds another place
        (2 * GB, 3 * GB, 3 * GB),  # twice the model does not fit, the model does
        (2 * GB, GB, GB),  # it does not: the plan is refused
        (10 * MB, 64 * MB, 256 << 20),  # a container's default: small enough for the disk
    ],
)
def test_the_object_store_is_twice_the_model_and_no_more_than_there_is(
    model: int, shared: int | None, store: int
) -> None:
    assert object_store_bytes(model, shared) == store


def test_this_machine_has_cores_memory_and_a_store_for_the_model() -> None:
    node = machine.this_machine(0)
    assert node.cpus >= 1
    assert node.memory > 100 * MB
    assert node.object_store >= 64 * MB
    assert node.driver


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(machine, "cores", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        (None, 1),  # not a submitted job: the user's own setting
        ({"runtime_env": {}}, 3),
        ({"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}, 1),  # the user's own again
    ],
)
def test_the_driver_of_a_submitted_job_gets_back_the_cores_that_ray_took(
    monkeypatch: pytest.MonkeyPatch, environment: dict | None, threads: int
) -> None:
    monkeypatch.delenv(machine.JOB_CONFIG, raising=False)
    if environment is not None:
        monkeypatch.setenv(machine.JOB_CONFIG, json.dumps(environment))
    work_in_driver()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("begin", [partial(work_with_threads, 1), work_in_driver], ids=["worker", "driver"])
def test_workers_and_drivers_take_denormal_numbers_for_zero(begin: Callable[[], None]) -> None:
    threads, tiny = torch.get_num_threads(), torch.full((64, 64), 1e-20)
    assert (tiny @ tiny).count_nonzero() == 64 * 64

    begin()
    try:
        assert (tiny @ tiny).count_nonzero() == 0
    finally:
        torch.set_num_threads(threads)
