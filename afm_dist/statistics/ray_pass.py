"""A statistics pass on Ray: the driver's side, and the task that each group is.

What a group is (shards of a log, or rows of a table) and how its moments come about is the work's
affair. The driver submits groups, sees that each partial is where its receipt says, and sums them up
in the order of the groups. A task runs one thread and commits one partial. Nothing is remembered
anywhere else, so workers and drivers may die at any point.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray

from afm_dist import storage
from afm_dist.errors import DataError, StageError
from afm_dist.runs.events import Emit
from afm_dist.runtime import console
from afm_dist.runtime.cluster import task_slots
from afm_dist.runtime.machine import work_with_threads
from afm_dist.runtime.resources import TaskResources
from afm_dist.runtime.tasks import RetryError, run_tasks
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.partials import Partials

STAGE = "statistics"
# How often a partial that was damaged after its commit is made again.
MAX_REPAIRS = 3


class Work(ABC):
    """What every task of a pass has in common; goes to the workers once.

    Attributes:
        partials: Where results are committed.
    """

    partials: Partials

    @property
    @abstractmethod
    def rows(self) -> Sequence[int]:
        """Of each group."""

    @abstractmethod
    def moments(self, group: int) -> dict[str, Moments]:
        """Of one group, with one thread.

        Raises:
            DataError: the input is damaged, or holds NaN or infinity.
        """


@dataclass(frozen=True, kw_only=True)
class PartialReceipt:
    """What a task returns: small, the result itself lies in storage."""

    rows: int
    seconds: float
    node: str
    digest: str


class RayPass:
    """The driver's side of a pass.

    Args:
        work: What the tasks do.
        resources: What each task gets.
        emit: Gets the events.
    """

    def __init__(self, work: Work, resources: TaskResources, emit: Emit) -> None:
        self._work = ray.put(work)
        self._partials = work.partials
        self._rows = work.rows
        self._resources = resources
        self._emit = emit

    def run(self) -> dict[str, Moments]:
        """Do the groups that have no partial yet, and sum up in the order of the groups."""
        merged: dict[str, Moments] = {}
        for part in self.parts():
            merge_into(merged, part)
        return merged

    def parts(self) -> Iterator[dict[str, Moments]]:
        """Do the groups that have no partial yet, and yield all in their order, one in memory at a time."""
        if beside := self._partials.beside():
            console.info(f"  beside them lie partials of other passes, unused: {', '.join(beside)}")
        self._partials.begin()
        committed = self._partials.committed(len(self._rows))
        if committed:
            console.info(f"  {len(committed)} of {len(self._rows)} groups were already committed")
            self._emit("groups found committed", what=STAGE, groups=committed)
        self._collect([i for i in range(len(self._rows)) if i not in set(committed)])
        for i in range(len(self._rows)):
            yield self._load(i)

    def _collect(self, groups: Sequence[int]) -> None:
        """Commit the partials of some groups."""
        todo = sum(self._rows[i] for i in groups)
        total = sum(self._rows)
        collect_group = _collect_group.options(name=STAGE, **self._resources.ray_options)
        with console.progress(STAGE, total, before=total - todo) as advance:

            def finished(group: int, receipt: PartialReceipt) -> None:
                self._check_in(group, receipt)
                advance(receipt.rows)

            run_tasks(
                lambda i: collect_group.remote(self._work, i),
                groups,
                finished=finished,
                what=STAGE,
                name_of=lambda i: f"group {i}",
                slots=lambda: task_slots(self._resources),
                emit=self._emit,
            )

    def _check_in(self, group: int, receipt: PartialReceipt) -> None:
        """See that a partial is where its receipt says.

        Raises:
            RetryError: it is not.
        """
        if storage.exists(self._partials.location(group)):
            self._emit(
                "group committed",
                what=STAGE,
                group=group,
                rows=receipt.rows,
                seconds=receipt.seconds,
                node=receipt.node,
                digest=receipt.digest,
            )
            return
        if self._partials.under_way():
            raise RetryError(
                f"what node {receipt.node} wrote to {self._partials.folder} is not there for the driver; all "
                "nodes must share that folder"
            )
        self._partials.begin()
        raise RetryError("another driver ended the same pass meanwhile")

    def _load(self, group: int) -> dict[str, Moments]:
        """Read a partial, made again if it was lost or damaged after its commit."""
        for _ in range(MAX_REPAIRS):
            try:
                return self._partials.load(group)
            except DataError as error:
                console.warn(f"{error}; doing this group again")
                self._emit("damaged partial", what=STAGE, group=group, reason=str(error))
            storage.remove(self._partials.location(group))
            if not self._partials.under_way():
                self._partials.begin()
            there = self._partials.committed(len(self._rows))
            self._collect([i for i in range(group, len(self._rows)) if i not in set(there)])
        try:
            return self._partials.load(group)
        except DataError as error:
            raise StageError(
                f"{error} (made {MAX_REPAIRS} times again); look for a failing disk, or for a program that "
                "changes the files of this run"
            ) from error


def merge_into(merged: dict[str, Moments], part: Mapping[str, Moments]) -> None:
    """Add the moments of the next group to those of the groups before."""
    for name, own in part.items():
        merged[name] = merged[name].merge(own) if name in merged else own


@ray.remote(max_retries=0)
def _collect_group(work: Work, group: int) -> PartialReceipt:
    """Commit the partial of one group, unless an earlier attempt has; returns a receipt."""
    started = time.monotonic()
    digest = work.partials.digest(group)
    if digest is None:
        work_with_threads(1)
        moments = work.moments(group)
        digest = work.partials.commit(group, moments)
    return PartialReceipt(
        rows=work.rows[group],
        seconds=round(time.monotonic() - started, 3),
        node=ray.util.get_node_ip_address(),
        digest=digest,
    )
