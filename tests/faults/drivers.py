"""Drivers of their own processes, connected to a cluster, that tests may kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

import ray

from tests.forks import fork_server

Result = TypeVar("Result")


def _connect(address: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")


class Driver:
    """A process that is connected to a cluster and runs functions, one after the other.

    Args:
        address: Of the cluster.
    """

    def __init__(self, address: str) -> None:
        self._executor = ProcessPoolExecutor(
            1, mp_context=fork_server(), initializer=_connect, initargs=(address,)
        )

    def start(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Run a function of a module in the driver; returns at once."""
        return self._executor.submit(function, *arguments)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function in the driver and wait for its result."""
        return self.start(function, *arguments).result()

    def kill(self) -> None:
        """kill -9."""
        for process in list(self._executor._processes):
            os.kill(process, signal.SIGKILL)

    def close(self) -> None:
        """Disconnect and end it; it may be dead already."""
        self._executor.shutdown(wait=True)
