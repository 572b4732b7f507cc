"""Collectives over all workers, with their bytes counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Collectives:
    """Calls the collectives of the default process group, and counts what it gives to them.

    Only such as NCCL has too: dense tensors of one shape on all workers.

    Args:
        world_size: Number of workers.

    Attributes:
        world_size: Number of workers.
        bytes_sent: Bytes given to collectives so far.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.bytes_sent = 0

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all workers."""
        self.bytes_sent += tensor.nbytes
        dist.all_reduce(tensor)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Give the tensors of all workers, of one shape, in the order of their ranks."""
        self.bytes_sent += tensor.nbytes
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(gathered, tensor)
        return gathered

    def gather_rows(self, tensor: Tensor, lengths: Sequence[int]) -> Tensor:
        """Join tensors of different lengths; all are padded to the longest.

        Args:
            tensor: Of this worker, shape (its length, …).
            lengths: Of all workers, in the order of their ranks.

        Returns:
            Shape (sum of the lengths, …), in the order of the ranks.
        """
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = zip(self.gather(padded), lengths, strict=True)
        return torch.cat([part[:length] for part, length in parts])
