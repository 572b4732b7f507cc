"""What suites have in common: one thread, no lines of the stages they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from afm_dist.runtime import console


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines of the stages that are measured."""
    console.out.quiet = True
    try:
        yield
    finally:
        console.out.quiet = False
