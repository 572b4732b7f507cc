"""Processes that begin with torch and Ray imported, which takes seconds."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = ["torch", "ray", "tests.faults.passes"]


def fork_server() -> ForkServerContext:
    """Makes processes: forks of one that has imported what is preloaded, and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
