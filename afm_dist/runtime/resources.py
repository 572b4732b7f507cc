"""What a task or a training worker gets of a cluster: CPUs, GPUs, and the device its model runs on.

Pure functions of the nodes there are; ``cluster.py`` asks Ray for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from afm_dist.errors import OptionError

UseGpu = Literal["auto", "always", "never"]
Device = Literal["cpu", "cuda"]

THIS_MACHINE = "this machine"

# Ray counts resources in ten-thousandths.
SMALLEST_SHARE = 1e-4


def _check_share(option: str, value: float, most: float) -> None:
    if not SMALLEST_SHARE <= value <= most or value == math.inf:
        limit = "at most 1" if most == 1 else "finite"
        raise OptionError(f"{option} {value}: must be positive and {limit}; try 0.5")


@dataclass(frozen=True, kw_only=True)
class CpuOptions:
    """What the tasks of a job are given of the cluster."""

    task_cpus: float = 1.0
    """CPUs that Ray sets aside for a task, e.g. 0.5 to run twice as many at once, 2 to halve the memory
    a node needs. A task runs one thread either way, and its result is the same to the bit."""

    capacity_check: bool = True
    """Refuse, before anything starts, what the memory, the disk or the object stores cannot hold."""

    def __post_init__(self) -> None:
        _check_share("--task-cpus", self.task_cpus, math.inf)


@dataclass(frozen=True, kw_only=True)
class ResourceOptions(CpuOptions):
    """What the tasks and the training workers of a job are given of the cluster."""

    use_gpu: UseGpu = "auto"
    """auto: run the model on GPUs where the cluster's nodes offer some; always: wait for them; never."""

    task_gpus: float = 1.0
    """Where tasks use GPUs: the share of one that a task gets, e.g. 0.25 for four tasks on each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("--task-gpus", self.task_gpus, 1)


AUTOMATIC = ResourceOptions()
CPU_EACH = CpuOptions()


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of a cluster, as far as a plan is concerned.

    Attributes:
        name: For messages.
        cpus: That Ray may give to tasks.
        gpus: That Ray may give to tasks.
        memory: Bytes for processes, besides the object store.
        object_store: Bytes of the object store.
        driver: Whether the job's driver runs there.
    """

    name: str
    cpus: float
    gpus: float = 0
    memory: int = 0
    object_store: int = 0
    driver: bool = False


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines a job may use.

    Attributes:
        nodes: Those that are up.
        where: For messages: "this machine", or "the cluster at …".
        growing: Whether more nodes come when tasks wait: an autoscaler is at work, or no node with
            CPUs is up yet.
    """

    nodes: tuple[Node, ...]
    where: str
    growing: bool = False

    @property
    def cpus(self) -> float:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class TaskResources:
    """What each task of a pass gets.

    Attributes:
        cpus: That Ray sets aside; a task runs one thread whatever it is.
        gpus: Share of a GPU; 0 on CPUs.
        device: Type of the device the model runs on.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    device: Device = "cpu"

    @property
    def ray_options(self) -> dict[str, float]:
        """For ``.options(…)`` of a remote function."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def slots(self, nodes: Sequence[Node]) -> int:
        """Count such tasks that run at once."""
        return sum(self.slots_of(node) for node in nodes)

    def slots_of(self, node: Node) -> int:
        """Count such tasks that run at once on one node."""
        return _fitting(node, self.cpus, self.gpus)


ONE_CPU = TaskResources()


@dataclass(frozen=True, kw_only=True)
class TrainingResources:
    """What each data-parallel training worker gets.

    Attributes:
        workers: How many there are.
        cpus: Whole CPUs, and so many threads.
        gpus: 1 or 0.
        device: Type of the device the model runs on.
    """

    workers: int
    cpus: int
    gpus: int = 0
    device: Device = "cpu"

    @property
    def backend(self) -> str:
        """Of ``torch.distributed``: with GPUs both, NCCL for tensors there and gloo for the rest."""
        return "gloo" if self.device == "cpu" else "cpu:gloo,cuda:nccl"

    @property
    def ray_resources(self) -> dict[str, float]:
        """For ``ScalingConfig(resources_per_worker=…)``."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    def workers_of(self, node: Node) -> int:
        """Count such workers that fit on one node."""
        return _fitting(node, self.cpus, self.gpus)


def training_resources(nodes: Sequence[Node], workers: int, *, use_gpu: bool) -> TrainingResources:
    """Divide all CPUs of the nodes equally among some workers, and with GPUs one each.

    Raises:
        OptionError: so many workers do not fit.
    """
    gpus = int(use_gpu)
    cpus = cpus_per_worker(nodes, workers, gpus=gpus)
    if cpus:
        return TrainingResources(workers=workers, cpus=cpus, gpus=gpus, device="cuda" if use_gpu else "cpu")
    total = f"{sum(int(node.cpus) for node in nodes)} CPUs"
    if use_gpu:
        most = sum(_fitting(node, 1, 1) for node in nodes)
        raise OptionError(
            f"--workers {workers}: Ray has {sum(int(node.gpus) for node in nodes)} GPUs and {total}; "
            f"use at most {most} workers, or --use-gpu never"
        )
    raise OptionError(
        f"--workers {workers}: Ray has only {total}; use at most that many workers, or start more nodes first"
    )


def cpus_per_worker(nodes: Sequence[Node], workers: int, *, gpus: int = 0) -> int:
    """Find the most CPUs for each of some equal workers when none spans two nodes; 0: they do not fit."""
    for cpus in range(int(max((node.cpus for node in nodes), default=0)), 0, -1):
        if sum(_fitting(node, cpus, gpus) for node in nodes) >= workers:
            return cpus
    return 0


def _fitting(node: Node, cpus: float, gpus: float) -> int:
    """Count how often a demand fits on a node; shares of a GPU do not span two."""
    # Rounding: 1 / 0.1 is ten tasks, though 0.1 is a little more than a tenth.
    by_cpu = math.floor(node.cpus / cpus + 1e-6)
    if gpus == 0:
        return by_cpu
    return min(by_cpu, int(node.gpus) * math.floor(1 / gpus + 1e-6))
