"""What an exchange of gradients is, and what a training asks of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from afm_dist.errors import OptionError


@dataclass(frozen=True)
class StepTotals:
    """What one worker, or all workers together, say of a step.

    Attributes:
        loss: Sum of the losses, a scalar, float64.
        checkpoint: Whether a checkpoint is due after the step.
    """

    loss: Tensor
    checkpoint: bool


class Exchange(Protocol):
    """Brings the gradients of all workers together, once a step.

    What it carries from one step to the next (a residual of error feedback, say) belongs to one
    worker. It lies in the checkpoints of the training, so that a resumed training ends with the
    same bits.
    """

    @property
    def bytes_sent(self) -> int:
        """Bytes of the tensors that this worker gave to collectives since the exchange was made.

        Padding included. What the backend makes of them on the wire is not counted: a ring moves
        2·(W − 1)/W times the bytes of an all-reduce over W workers.
        """

    def exchange(self, model: nn.Module, mine: StepTotals) -> StepTotals:
        """Replace each gradient by what the workers' gradients come to, the same bits on every worker.

        Every worker calls this after its backward pass, with gradients of the same parameters.

        Args:
            model: Holds the gradients, dense or sparse; each is of this worker's share of the mean loss,
                so that the gradient of the global batch is their sum. Sparse ones are the result of
                ``gradients.sum_rows``, and stay so.
            mine: What this worker says of the step.

        Returns:
            The same of all workers: losses added up, a checkpoint when any asks for one.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the state of this worker as named tensors; empty without one."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` gave on the worker of this rank.

        Raises:
            KeyError: a tensor that this exchange does not know.
        """

    def forget(self, names: Collection[str]) -> None:
        """Drop the state of some parameters, which were drawn anew."""


class ExchangeConfig(Protocol):
    """Says which exchange a training uses; travels to the workers."""

    @property
    def name(self) -> str:
        """For checkpoints and messages."""

    def build(self, world_size: int) -> Exchange:
        """Make the exchange of one worker among so many."""


def check_exchange(name: str, workers: int, *, saved: str, saved_workers: int, stateful: bool) -> None:
    """Refuse to go on from a state that another exchange, or other workers, cannot take over.

    Args:
        name: Of the exchange that goes on.
        workers: That go on.
        saved: Name of the exchange that left the state.
        saved_workers: That left it.
        stateful: Whether the exchange has a state on each worker.

    Raises:
        OptionError: it does and they are not as many, or the exchange is another.
    """
    if name != saved:
        raise OptionError(
            f"exchange {name}: the training began with the exchange {saved}; go on with that, or delete the "
            "folder of this stage to train anew"
        )
    if stateful and workers != saved_workers:
        raise OptionError(
            f"--workers {workers}: the training began with {saved_workers} workers, and the exchange {name} "
            f"has a state on each of them; go on with --workers {saved_workers}, or delete the folder of "
            "this stage to train anew"
        )
