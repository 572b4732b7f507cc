"""Whether a cluster can hold what a job takes: memory, object stores and disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

from afm_dist import storage
from afm_dist.errors import OptionError
from afm_dist.runs.run import SUCCESS
from afm_dist.runtime import console
from afm_dist.runtime.machine import holds
from afm_dist.runtime.resources import THIS_MACHINE, Cluster, Node, TaskResources, TrainingResources

Place = Literal["tasks", "training", "driver"]

OVERRIDE = "--no-capacity-check starts it all the same"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one stage takes.

    Attributes:
        stage: Its name.
        place: What its workers are: Ray tasks, training workers, or nothing besides the driver.
        rows: Rows it reads, over all its passes.
        tasks: Most tasks that it can have at a time.
        memory: Bytes of a worker's own, without what it shares through the object store.
        driver: Bytes of the driver.
        gpu: Bytes of a worker on its GPU, or its share of one.
        disk: Bytes it leaves.
        seconds: It takes on the cluster; None: nobody has measured.
        note: What else there is to say.
    """

    stage: str
    place: Place
    rows: int = 0
    tasks: int = 1
    memory: int = 0
    driver: int = 0
    gpu: int = 0
    disk: int = 0
    seconds: float | None = 0.0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What a job takes, and what there is.

    Attributes:
        estimates: Of its stages, in order.
        cluster: Where it would run.
        tasks: What each task gets.
        training: What each training worker gets; None: nothing is trained, or nobody knows yet.
        object_store: Bytes that the object store of every node has to hold at once.
        output: Where the disk is taken; None: nowhere.
    """

    estimates: tuple[Estimate, ...]
    cluster: Cluster
    tasks: TaskResources
    training: TrainingResources | None = None
    object_store: int = 0
    output: str | None = None

    def left(self) -> JobPlan:
        """Leave out the stages that an earlier run finished in the same directory."""
        if self.output is None:
            return self
        return replace(
            self,
            estimates=tuple(
                estimate
                for estimate in self.estimates
                if not storage.exists(storage.join(self.output, estimate.stage, SUCCESS))
            ),
        )

    @property
    def disk(self) -> int:
        """Bytes that all stages leave."""
        return sum(estimate.disk for estimate in self.estimates)

    def workers_on(self, node: Node, estimate: Estimate) -> int:
        """Count the workers of a stage that a node runs at once, at most."""
        if estimate.place == "tasks":
            return min(self.tasks.slots_of(node), estimate.tasks)
        if estimate.place == "training" and self.training is not None:
            return min(self.training.workers_of(node), self.training.workers)
        return 0


def admit(plan: JobPlan, *, check: bool) -> None:
    """Refuse a plan that the cluster cannot hold.

    Args:
        plan: What is to be done.
        check: Otherwise only warn of it.

    Raises:
        OptionError: says what is missing, where, and what to do.
    """
    found = problems(plan)
    if not found:
        return
    text = f"{plan.cluster.where} cannot hold this plan: {'; '.join(found)}"
    if check:
        raise OptionError(f"{text}; {OVERRIDE}")
    console.warn(text)


def problems(plan: JobPlan) -> list[str]:
    """List everything that does not fit, each with what to do about it."""
    return [*_object_store(plan), *_task_memory(plan), *_training_memory(plan), *_driver(plan), *_disk(plan)]


def _object_store(plan: JobPlan) -> Iterator[str]:
    small = [node for node in plan.cluster.nodes if not holds(node.object_store, plan.object_store)]
    if not small or not plan.estimates:
        return
    wanted = round_up(2 * plan.object_store)
    fix = (
        f"start the container with --shm-size={wanted}, or use a machine with more memory"
        if plan.cluster.where == THIS_MACHINE
        else f"start Ray there with --object-store-memory {wanted}"
    )
    yield (
        f"object store: the model takes {size(plan.object_store)} on every node, {names(small)} "
        f"{have(small)} {size(min(node.object_store for node in small))} for it; {fix}"
    )


def _task_memory(plan: JobPlan) -> Iterator[str]:
    for estimate, worst, small in _overfull(plan, "tasks"):
        at_once = plan.workers_on(worst, estimate)
        fitting = _room(worst, estimate) // estimate.memory
        if fitting >= 1:
            fix = f"--task-cpus {math.ceil(worst.cpus / fitting * 100) / 100:g} runs {fitting} at once there"
        else:
            fix = "use nodes with more memory"
        yield (
            f"memory: {estimate.stage} runs {at_once} tasks of {size(estimate.memory)} at once on "
            f"{names(small)}, where {size(_room(worst, estimate))} are free for them; {fix}"
        )


def _training_memory(plan: JobPlan) -> Iterator[str]:
    for estimate, worst, small in _overfull(plan, "training"):
        workers = plan.workers_on(worst, estimate)
        fewer = "fewer --workers, or " if workers > 1 else ""
        yield (
            f"memory: {estimate.stage} runs {workers} training worker{'s' * (workers > 1)} of "
            f"{size(estimate.memory)} on {names(small)}, where {size(_room(worst, estimate))} are free for "
            f"them; use {fewer}nodes with more memory"
        )


def _overfull(plan: JobPlan, place: Place) -> Iterator[tuple[Estimate, Node, list[Node]]]:
    """Find the stage whose workers take most beyond what a node has, that node, and all such nodes."""
    excess = {
        (estimate, node): plan.workers_on(node, estimate) * estimate.memory - _room(node, estimate)
        for estimate in plan.estimates
        if estimate.place == place
        for node in plan.cluster.nodes
        if plan.workers_on(node, estimate)
    }
    if excess and max(excess.values()) > 0:
        estimate, worst = max(excess, key=lambda pair: excess[pair])
        small = [node for node in plan.cluster.nodes if excess.get((estimate, node), 0) > 0]
        yield estimate, worst, small


def _driver(plan: JobPlan) -> Iterator[str]:
    for node in plan.cluster.nodes:
        if node.driver and plan.estimates:
            widest = max(plan.estimates, key=lambda estimate: estimate.driver)
            if widest.driver > node.memory:
                yield (
                    f"memory: {widest.stage} takes {size(widest.driver)} of the driver on {node.name}, where "
                    f"{size(node.memory)} are free; run the driver on a machine with more"
                )


def _disk(plan: JobPlan) -> Iterator[str]:
    if plan.output is None:
        return
    free = free_disk(plan.output)
    if free is not None and free < plan.disk:
        yield (
            f"disk: the run directory takes {size(plan.disk)}, {plan.output} has {size(free)} free; "
            "choose an --output on a larger disk"
        )


def _room(node: Node, estimate: Estimate) -> int:
    """Count the bytes a node has for the workers of a stage."""
    return max(0, node.memory - (estimate.driver if node.driver else 0))


def free_disk(output: str) -> int | None:
    """Return the bytes free where a run directory is, or would be; None: not known (object store)."""
    if not storage.is_local(output):
        return None
    path = Path(storage.absolute(str(storage.local_path(output))))
    while not path.exists():
        path = path.parent
    free: int = shutil.disk_usage(path).free
    return free


def size(count: float) -> str:
    """Write a number of bytes with its unit."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def round_up(count: float) -> int:
    """Round up to two digits, for people to copy."""
    scale = int(10 ** max(0, math.floor(math.log10(count)) - 1))
    return math.ceil(count / scale) * scale


def names(nodes: Sequence[Node]) -> str:
    """Name some nodes."""
    listed = ", ".join(node.name for node in nodes[:2])
    if len(nodes) <= 2:
        return listed
    return f"{len(nodes)} nodes ({listed}, …)"


def have(nodes: Sequence[Node]) -> str:
    """Choose the verb after ``names``."""
    return "has" if len(nodes) == 1 else "have"


def describe_nodes(cluster: Cluster) -> str:
    """Describe the nodes there are, those of one kind together."""

    def kind(node: Node) -> tuple[float, float, str, str]:
        return node.cpus, node.gpus, size(node.memory), size(node.object_store)

    parts = []
    for (cpus, gpus, memory, store), alike in groupby(
        sorted(cluster.nodes, key=kind, reverse=True), key=kind
    ):
        count = len(list(alike))
        of_each = f"{cpus:g} CPUs" + (f", {gpus:g} GPUs" if gpus else "")
        parts.append(f"{count} node{'s' * (count > 1)} with {of_each}, {memory} free, object store {store}")
    return "; ".join(parts) or "no nodes"
