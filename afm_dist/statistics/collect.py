"""The statistics pass: inference over the training split, moments of the chosen layers.

One Ray task per shard group, one committed partial per group, summed in group order. The groups
follow from the manifest, a task runs one thread with a fixed batch size, so the result is the
same bits for any number of workers, any schedule, and after killed workers or drivers. (Bits
compare on processors of one kind: others round the same products differently.)
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import cloudpickle
from torch import nn

from afm_dist import __version__, console, storage
from afm_dist.cluster import ensure_ray, task_resources, task_slots
from afm_dist.dataset.manifest import MAX_GROUPS, Manifest, Shard
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError, OptionError, StageError
from afm_dist.events import Emit, unheard
from afm_dist.resources import AUTOMATIC, Device, ResourceOptions, TaskResources
from afm_dist.sharing import SharedModel, load_shared, model_bytes, model_digest, share
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.observe import ForwardFn, Observer, Targets, forward_batch, match_modules
from afm_dist.statistics.partials import Partials
from afm_dist.tasks import TryAgainError, run_tasks

STAGE = "statistics"
BATCH_SIZE = 8192
# How often a partial that was damaged after its commit is made again.
MAX_REPAIRS = 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every task of a pass has in common.

    Attributes:
        shared: The model in the object store.
        manifest: The dataset.
        modules: Names of the modules to watch.
        forward_fn: How the model is called with a batch.
        batch_size: Rows of a batch.
        device: Type of the device the model runs on.
        partials: Where results are committed.
    """

    shared: SharedModel
    manifest: Manifest
    modules: Sequence[str]
    forward_fn: ForwardFn
    batch_size: int
    device: Device
    partials: Partials


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a task returns: small, the result itself lies in storage."""

    rows: int
    seconds: float
    node: str
    digest: str


def collect_moments(
    model: nn.Module,
    dataset: str | Manifest | Iterable[Any],
    targets: Targets,
    *,
    split: str = "train",
    forward_fn: ForwardFn | None = None,
    batch_size: int = BATCH_SIZE,
    max_groups: int = MAX_GROUPS,
    folder: str | None = None,
    options: ResourceOptions = AUTOMATIC,
    emit: Emit = unheard,
) -> dict[str, Moments]:
    """Moments of the outputs of some modules over a dataset (E[y] and Cov(y) of the paper's eq. 1).

    Args:
        model: Any module; runs in eval mode, is left as it was.
        dataset: A dataset directory or its manifest: a Ray pass, out of core. Or any iterable of
            batches: a loop in this process.
        targets: Name patterns (``"mlp.*"``) or types (``nn.Linear``) of modules to watch.
        split: Which split of a dataset.
        forward_fn: Called as ``forward_fn(model, batch)``; default ``model(batch.ids, batch.numeric)``.
        batch_size: Rows of a batch in the Ray pass.
        max_groups: At most this many tasks and partials. Another number of groups or another batch
            size is another order of summation: equal within the error bound, not in bits.
        folder: Where partials are committed, a path that all workers share; interrupted passes go
            on from there. Default: a temporary folder on this machine.
        options: What each task of the Ray pass gets of the cluster. The result is the same bits
            whatever it is, on one type of device; GPUs and CPUs round differently.
        emit: Gets the events of the Ray pass, e.g. ``Run.event``.

    Returns:
        By module name, or ``module[field]`` for each field of a fused table.

    Raises:
        OptionError: a target that matches nothing.
        DataError: a damaged shard, or NaN or infinity in an output (names module and shard or batch).
        StageError: workers kept dying, or the storage kept failing.
    """
    modules = match_modules(model, targets)
    if isinstance(dataset, str):
        dataset = Manifest.load(dataset)
    if not isinstance(dataset, Manifest):
        return _collect_here(model, dataset, modules, forward_fn or (lambda model, batch: model(batch)))
    groups = dataset.groups(split, max_groups)
    ensure_ray(object_bytes=model_bytes(model))
    temporary = None
    if folder is None:
        if sum(node["Alive"] for node in ray.nodes()) > 1:
            raise OptionError(
                "on a cluster of several nodes give collect_moments a folder= that all of them share"
            )
        folder = temporary = tempfile.mkdtemp(prefix="afm-dist-")
    call = forward_fn or forward_batch
    resources = task_resources(options)
    facts = {
        "version": __version__,
        "torch": torch.__version__,
        "model": model_digest(model),
        "forward": storage.sha256(_pickled(call)),
        "data": dataset.fingerprint(),
        "split": split,
        "modules": modules,
        "batch_size": batch_size,
        "groups": len(groups),
        "device": resources.device,
    }
    work = Work(
        shared=share(model),
        manifest=dataset,
        modules=modules,
        forward_fn=call,
        batch_size=batch_size,
        device=resources.device,
        partials=Partials(parent=storage.absolute(folder), facts=facts),
    )
    try:
        return _Pass(work, groups, resources, emit).run()
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _pickled(forward_fn: ForwardFn) -> bytes:
    try:
        return bytes(cloudpickle.dumps(forward_fn))
    except Exception as error:
        raise OptionError(f"forward_fn cannot be sent to workers: {error}") from error


def _collect_here(
    model: nn.Module, batches: Iterable[Any], modules: Sequence[str], forward_fn: ForwardFn
) -> dict[str, Moments]:
    observer = Observer(model, modules)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode(), observer.watching():
            for i, batch in enumerate(batches):
                try:
                    forward_fn(model, batch)
                except ValueError as error:
                    raise DataError(
                        f"batch {i}: {error}; look for broken values in it or for a diverged model"
                    ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    return observer.moments


class _Pass:
    """The driver's side of a pass.

    Args:
        work: What the tasks have in common.
        groups: The shards of each task.
        resources: What each task gets.
        emit: Gets the events.
    """

    def __init__(
        self, work: Work, groups: Sequence[Sequence[Shard]], resources: TaskResources, emit: Emit
    ) -> None:
        self._work = ray.put(work)
        self._partials = work.partials
        self._groups = groups
        self._resources = resources
        self._emit = emit

    def run(self) -> dict[str, Moments]:
        """Do the groups that have no partial yet, and sum up."""
        if beside := self._partials.beside():
            console.say(f"  beside them lie partials of other passes, unused: {', '.join(beside)}")
        self._partials.begin()
        committed = self._partials.committed(len(self._groups))
        if committed:
            console.say(f"  {len(committed)} of {len(self._groups)} groups were already committed")
            self._emit("groups found committed", what=STAGE, groups=committed)
        self._collect([i for i in range(len(self._groups)) if i not in set(committed)])
        merged = self._merge()
        self._partials.end()
        return merged

    def _collect(self, groups: Sequence[int]) -> None:
        """Commit the partials of some groups."""
        todo = sum(self._rows(i) for i in groups)
        total = sum(self._rows(i) for i in range(len(self._groups)))
        collect_group = _collect_group.options(name=STAGE, **self._resources.ray_options)
        with console.progress(STAGE, total, before=total - todo) as advance:

            def finished(group: int, receipt: Receipt) -> None:
                self._check_in(group, receipt)
                advance(receipt.rows)

            run_tasks(
                lambda i: collect_group.remote(self._work, i, self._groups[i]),
                groups,
                finished=finished,
                what=STAGE,
                name_of=lambda i: f"group {i}",
                slots=lambda: task_slots(self._resources),
                emit=self._emit,
            )

    def _check_in(self, group: int, receipt: Receipt) -> None:
        """See that a partial is where its receipt says.

        Raises:
            TryAgainError: it is not.
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
            raise TryAgainError(
                f"what node {receipt.node} wrote to {self._partials.folder} is not there for the driver; all "
                "nodes must share that folder"
            )
        self._partials.begin()
        raise TryAgainError("another driver ended the same pass meanwhile")

    def _merge(self) -> dict[str, Moments]:
        """Sum the partials in the order of the groups, one in memory at a time."""
        merged: dict[str, Moments] = {}
        for i in range(len(self._groups)):
            for name, part in self._load(i).items():
                merged[name] = merged[name].merge(part) if name in merged else part
        return merged

    def _load(self, group: int) -> dict[str, Moments]:
        """A partial, made again if it was lost or damaged after its commit."""
        for _ in range(MAX_REPAIRS):
            try:
                return self._partials.load(group)
            except DataError as error:
                console.warn(f"{error}; doing this group again")
                self._emit("damaged partial", what=STAGE, group=group, reason=str(error))
            storage.remove(self._partials.location(group))
            if not self._partials.under_way():
                self._partials.begin()
            there = self._partials.committed(len(self._groups))
            self._collect([i for i in range(group, len(self._groups)) if i not in set(there)])
        try:
            return self._partials.load(group)
        except DataError as error:
            raise StageError(
                f"{error} (made {MAX_REPAIRS} times again); look for a failing disk, or for a program that "
                "changes the files of this run"
            ) from error

    def _rows(self, group: int) -> int:
        return sum(shard.rows for shard in self._groups[group])


@ray.remote(max_retries=0)
def _collect_group(work: Work, group: int, shards: Sequence[Shard]) -> Receipt:
    """Commit the partial of one group and return a receipt."""
    started = time.monotonic()
    torch.set_num_threads(1)
    model = load_shared(work.shared).to(work.device)
    observer = Observer(model, work.modules)
    rows = 0
    with torch.inference_mode(), observer.watching():
        for shard in shards:
            try:
                for batch in read_batches(work.manifest, [shard], work.batch_size):
                    work.forward_fn(model, batch.to(work.device))
                    rows += len(batch)
            except ValueError as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"{shard.path}: {error}; look for broken values in this shard or for a diverged model"
                ) from error
    digest = work.partials.commit(group, observer.moments)
    seconds = round(time.monotonic() - started, 3)
    return Receipt(rows=rows, seconds=seconds, node=ray.util.get_node_ip_address(), digest=digest)
