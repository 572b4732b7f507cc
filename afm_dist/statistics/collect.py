"""The statistics pass: inference over the training split, moments of the chosen layers.

One Ray task per shard group, one committed partial per group, summed in group order. The groups
follow from the manifest, a task runs one thread with a fixed batch size, so the result is the
same bits for any number of workers, any schedule, and after killed workers or drivers. (Bits
compare on processors of one kind: others round the same products differently.)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray import cloudpickle
from torch import nn

from afm_dist import __version__, storage
from afm_dist.compression.outline import Outline
from afm_dist.dataset.manifest import MAX_GROUPS, Manifest, Shard
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError, OptionError
from afm_dist.modules.eval_mode import eval_mode
from afm_dist.runs.events import Emit, unheard
from afm_dist.runtime.cluster import ensure_ray, task_resources
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.runtime.sharing import model_bytes, model_digest, share, source_of
from afm_dist.statistics.collected import CollectedMoments, Probe
from afm_dist.statistics.observe import ForwardFn, Observer, Targets, forward_batch, match_modules
from afm_dist.statistics.partials import Partials
from afm_dist.statistics.ray_pass import RayPass
from afm_dist.statistics.shard_work import ShardWork

BATCH_SIZE = 8192
# On which a rewritten model is tried.
PROBE_ROWS = 256


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
    keep: bool = False,
    options: ResourceOptions = AUTOMATIC,
    emit: Emit = unheard,
) -> CollectedMoments:
    """Moments of the outputs of some modules over a dataset (E[y] and Cov(y) of the paper's eq. 1).

    Args:
        model: Any module; runs in eval mode, is left as it was (see ``eval_mode``).
        dataset: A dataset directory or its manifest: a Ray pass, out of core. Or any iterable of
            batches: a loop in this process.
        targets: Name patterns (``"mlp.*"``) or types (``nn.Linear``) of modules to watch.
        split: Which split of a dataset.
        forward_fn: Called as ``forward_fn(model, batch)``; default ``model(batch.ids, batch.numeric)``.
        batch_size: Rows of a batch in the Ray pass.
        max_groups: At most this many tasks and partials. Another number of groups or another batch
            size is another order of summation: equal within the error bound, not in bits.
        folder: Where partials are committed, a path that all workers share; interrupted passes go
            on from there, unless the model, ``forward_fn`` (as far as their source shows), the data
            or the options changed. Default: a temporary folder on this machine.
        keep: Leave the partials in ``folder`` until what is made of them is saved; ``remove_partials``
            of ``afm_dist.statistics.partials`` deletes them then. Default: they are deleted here.
        options: What each task of the Ray pass gets of the cluster. The result is the same bits
            whatever it is, on one type of device; GPUs and CPUs round differently.
        emit: Gets the events of the Ray pass, e.g. ``Run.event``.

    Returns:
        By module name, or ``module[field]`` for each field of a fused table. A dict that keeps the first
        batch, or where to read one, so that ``compress_`` can try what it did, and the shapes of the modules,
        so that ``plan_ranks`` can leave alone what would grow.

    Raises:
        OptionError: a target that matches nothing, or a model or ``forward_fn`` that cannot be sent
            to workers.
        DataError: a damaged shard, or NaN or infinity in an output (names module and shard or batch).
        StageError: workers kept dying, or the storage kept failing.
    """
    modules = match_modules(model, targets)
    if isinstance(dataset, str):
        dataset = Manifest.load(dataset)
    if not isinstance(dataset, Manifest):
        return _collect_here(model, dataset, modules, forward_fn or (lambda model, batch: model(batch)))
    if not 1 <= max_groups <= MAX_GROUPS:
        raise OptionError(f"max_groups {max_groups}: must lie between 1 and {MAX_GROUPS}")
    groups = dataset.groups(split, max_groups)
    ensure_ray(object_bytes=model_bytes(model))
    with _shared_folder(folder) as parent:
        call = forward_fn or forward_batch
        resources = task_resources(options)
        facts = {
            "version": __version__,
            "torch": torch.__version__,
            "model": model_digest(model),
            "forward": storage.sha256(_pickled(call) + source_of(call).encode()),
            "data": dataset.fingerprint(),
            "split": split,
            "modules": modules,
            "batch_size": batch_size,
            "groups": len(groups),
            "device": resources.device,
        }
        work = ShardWork(
            shared=share(model),
            manifest=dataset,
            groups=groups,
            modules=modules,
            forward_fn=call,
            batch_size=batch_size,
            device=resources.device,
            partials=Partials(parent=parent, facts=facts),
        )
        moments = RayPass(work, resources, emit).run()
        if not keep:
            work.partials.end()
    return CollectedMoments(
        moments, probe=_probe(dataset, groups, call), bytes_of=Outline(model, modules).bytes_of
    )


def _probe(dataset: Manifest, groups: Sequence[Sequence[Shard]], forward_fn: ForwardFn) -> Probe | None:
    """Reads a few rows when they are needed."""
    shards = [shard for group in groups for shard in group]

    def run(model: nn.Module) -> Any:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        batch = next(read_batches(dataset, shards[:1], PROBE_ROWS))
        return forward_fn(model, batch.to(device))

    return run if shards else None


@contextmanager
def _shared_folder(folder: str | None) -> Iterator[str]:
    """The folder that was given, or a temporary one where this machine is all there is."""
    if folder is not None:
        yield storage.absolute(folder)
        return
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        raise OptionError(
            "on a cluster of several nodes give collect_moments a folder= that all of them share"
        )
    temporary = tempfile.mkdtemp(prefix="afm-dist-")
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pickled(forward_fn: ForwardFn) -> bytes:
    try:
        return bytes(cloudpickle.dumps(forward_fn))
    except Exception as error:
        raise OptionError(f"forward_fn cannot be sent to workers: {error}") from error


def _collect_here(
    model: nn.Module, batches: Iterable[Any], modules: Sequence[str], forward_fn: ForwardFn
) -> CollectedMoments:
    observer = Observer(model, modules)
    probe: Probe | None = None
    with eval_mode(model) as apart, torch.no_grad(), observer.watching():
        for i, batch in enumerate(batches):
            probe = probe or _call(forward_fn, batch)
            try:
                with apart():
                    forward_fn(model, batch)
            except ValueError as error:
                raise DataError(
                    f"batch {i}: {error}; look for broken values in it or for a diverged model"
                ) from error
    return CollectedMoments(observer.moments, probe=probe, bytes_of=Outline(model, modules).bytes_of)


def _call(forward_fn: ForwardFn, batch: Any) -> Probe:
    return lambda model: forward_fn(model, batch)
