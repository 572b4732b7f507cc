"""Steps of a job, and lists of them: the dry run, the check of capacity and the run itself use one list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from afm_dist.pipelines.context import Context
    from afm_dist.planning.capacity import Estimate
    from afm_dist.planning.estimate import Costs

T = TypeVar("T")


class Step(ABC, Generic[T]):
    """Something a job does once. Later steps hold it, and read its ``result`` when they run themselves."""

    _results: tuple[T, ...] = ()

    @property
    def result(self) -> T:
        """Give what the step made; once it has run."""
        assert self._results, f"{type(self).__name__} has not run"
        return self._results[0]

    def run(self, context: Context) -> T:
        """Run the step, and keep the result."""
        self._results = (self.work(context),)
        return self.result

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give what it takes; nothing where that is not worth a line."""
        del costs
        return ()

    @abstractmethod
    def work(self, context: Context) -> T:
        """Do the work of the step."""


class Given(Step[T]):
    """A result that is there already: made by another job, or by whoever calls."""

    def __init__(self, result: T) -> None:
        self._results = (result,)

    def work(self, context: Context) -> T:
        """Do nothing."""
        return self.result


@dataclass(frozen=True)
class Pipeline:
    """Steps in the order in which they are done.

    Attributes:
        steps: What is done.
    """

    steps: Sequence[Step[Any]]

    def estimates(self, costs: Costs) -> list[Estimate]:
        """List what the steps take, in order."""
        return [estimate for step in self.steps for estimate in step.estimates(costs)]

    def run(self, context: Context) -> None:
        """Do all of it, in order."""
        for step in self.steps:
            step.run(context)
