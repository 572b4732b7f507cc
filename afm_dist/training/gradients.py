"""Gradients between the backward pass and the update: summed per row, over workers, and clipped.

Sparse gradients are gathered as (rows, values) of every worker and summed by each: the same code
under gloo and NCCL (which has no sparse all-reduce), and every worker gets the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Step:
    """What the workers know together after a step.

    Attributes:
        loss: Sum of the losses of all workers, a scalar.
        checkpoint: Whether any worker asked for a checkpoint.
    """

    loss: Tensor
    checkpoint: bool


def sum_rows(gradient: Tensor) -> Tensor:
    """``gradient.coalesce()``, 3 times faster: occurrences are added on all threads.

    Those of a row are added in the order in which they come, whatever the threads.

    Args:
        gradient: Sparse, shape (V, K), with one sparse dimension.
    """
    (summed,) = sum_rows_of([gradient])
    return summed


def sum_rows_of(gradients: Sequence[Tensor]) -> list[Tensor]:
    """``sum_rows`` of several gradients; neighbours that name the same rows are sorted together."""
    summed: list[Tensor] = []
    sorted_rows, groups = None, None
    for gradient in gradients:
        if gradient.is_coalesced():
            summed.append(gradient)
            continue
        rows, values = gradient._indices()[0], gradient._values()
        if groups is None or sorted_rows is None or not torch.equal(rows, sorted_rows):
            sorted_rows, groups = rows, _Groups.of(rows, gradient.shape[0])
        summed.append(
            torch.sparse_coo_tensor(
                groups.rows[None],
                groups.sums(values),
                gradient.shape,
                is_coalesced=True,
                check_invariants=False,
            )
        )
    return summed


@dataclass(frozen=True)
class _Groups:
    """Occurrences of rows, grouped.

    Attributes:
        rows: Distinct rows in order, shape (U,).
        order: Occurrences in the order of their rows, shape (N,).
        starts: Where each row's occurrences begin in ``order``, shape (U,).
    """

    rows: Tensor
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, rows: Tensor, largest: int) -> _Groups:
        """Group occurrences, shape (N,), of rows up to ``largest``."""
        # Half as many bytes are sorted in half the time.
        narrow = rows.int() if largest <= torch.iinfo(torch.int32).max else rows
        occurrences, order = narrow.sort(stable=True)
        distinct, counts = occurrences.unique_consecutive(return_counts=True)
        return cls(distinct.long(), order, counts.cumsum(0) - counts)

    def sums(self, values: Tensor) -> Tensor:
        """The sum of each row's values, (N, K) -> (U, K)."""
        if not len(values):
            return values
        # Compiled code leaves strides of 0 where a table has one column: 10 times slower here.
        values = values.flatten().view(values.shape)
        return functional.embedding_bag(self.order, values, self.starts, mode="sum")


def sum_rows_of_tables(model: nn.Module) -> None:
    """Replace each sparse gradient by its ``sum_rows``."""
    tables = [p for p in model.parameters() if p.grad is not None and p.grad.is_sparse]
    for parameter, summed in zip(tables, sum_rows_of([_gradient(p) for p in tables]), strict=True):
        parameter.grad = summed


def sum_over_workers(model: nn.Module, loss: Tensor, world_size: int, *, checkpoint: bool = False) -> Step:
    """Replace each gradient by its sum over all workers.

    Every worker calls this after its backward pass, with gradients of the same parameters. Sparse
    ones have to be the result of ``sum_rows``.

    Not by ``DistributedDataParallel``, which takes gradients for sparse of ``nn.Embedding`` only.

    Args:
        model: Holds the gradients.
        loss: This worker's, a scalar.
        world_size: Number of workers; with one nothing has to be done.
        checkpoint: Whether this worker asks for a checkpoint.
    """
    if world_size == 1:
        return Step(loss, checkpoint)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    sparse = [parameter for parameter in parameters if _gradient(parameter).is_sparse]
    dense = [_gradient(parameter) for parameter in parameters if not _gradient(parameter).is_sparse]
    # One small message first: the lengths of the later ones, and what else all have to know.
    lengths = [_gradient(parameter)._nnz() for parameter in sparse]
    mine = torch.tensor([float(loss), float(checkpoint), *lengths], dtype=torch.float64, device=loss.device)
    told = torch.stack(_gather(mine, world_size))
    if dense:
        joined = torch.cat([gradient.flatten() for gradient in dense])
        dist.all_reduce(joined)
        for gradient, part in zip(dense, joined.split([one.numel() for one in dense]), strict=True):
            gradient.copy_(part.view_as(gradient))
    for parameter, lengths_of_all in zip(sparse, told[:, 2:].long().T.tolist(), strict=True):
        parameter.grad = _sum_sparse(_gradient(parameter), lengths_of_all)
    return Step(told[:, 0].sum(), bool(told[:, 1].any()))


def _sum_sparse(gradient: Tensor, lengths: list[int]) -> Tensor:
    """The sum over the workers of a table's gradients with ``lengths`` rows each."""
    longest = max(lengths)
    if longest == 0:
        return gradient
    parts: list[Tensor] = []
    for mine in (gradient.indices()[0], gradient.values()):
        padded = mine.new_zeros(longest, *mine.shape[1:])
        padded[: len(mine)] = mine
        gathered = _gather(padded, len(lengths))
        parts.append(torch.cat([part[:length] for part, length in zip(gathered, lengths, strict=True)]))
    rows, values = parts
    return sum_rows(torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=False))


def _gather(tensor: Tensor, world_size: int) -> list[Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(gathered, tensor)
    return gathered


def clip(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scale all gradients down together so that their Euclidean norm is at most ``limit``.

    As ``torch.nn.utils.clip_grad_norm_``, which does not take sparse gradients. Sparse ones have to
    be the result of ``sum_rows``.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    values = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
    norm = torch.stack([torch.linalg.vector_norm(value) for value in values]).norm()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
