"""The statistics pass: inference over the training split, moments of the chosen layers.

One Ray task per shard group, one committed partial per group, summed in group order. The groups
follow from the manifest, a task runs one thread with a fixed batch size, so the result is the
same bits for any number of workers, any schedule, and after killed workers or drivers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import cloudpickle
from torch import nn

from afm_dist import __version__, console, storage
from afm_dist.cluster import ensure_ray, task_resources, task_slots
from afm_dist.compression.ranks import field_key
from afm_dist.dataset.counts import read_counts
from afm_dist.dataset.manifest import MAX_GROUPS, Manifest, Shard
from afm_dist.dataset.reader import read_batches
from afm_dist.embedding import FusedEmbedding
from afm_dist.errors import DataError, OptionError
from afm_dist.resources import AUTOMATIC, Device, ResourceOptions
from afm_dist.sharing import SharedModel, load_shared, model_bytes, model_digest, share
from afm_dist.statistics.moments import Moments, moments_of_table
from afm_dist.statistics.moments_file import load_moments, save_moments
from afm_dist.statistics.observe import ForwardFn, Observer, Targets, forward_batch, match_modules
from afm_dist.tasks import run_tasks

BATCH_SIZE = 8192
MAX_RETRIES = 5


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What every task of a pass has in common.

    Attributes:
        shared: The model in the object store.
        manifest: The dataset.
        modules: Names of the modules to watch.
        forward_fn: How the model is called with a batch.
        batch_size: Rows of a batch.
        folder: Where partials are committed.
        fingerprint: Of everything the partials depend on.
        device: Type of the device the model runs on.
    """

    shared: SharedModel
    manifest: Manifest
    modules: Sequence[str]
    forward_fn: ForwardFn
    batch_size: int
    folder: str
    fingerprint: str
    device: Device = "cpu"

    def partial(self, group: int) -> str:
        """Where the partial of a group is committed."""
        return storage.join(self.folder, f"group-{group:05d}.safetensors")


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
        max_groups: At most this many tasks and partials.
        folder: Where partials are committed, a path that all workers share; interrupted passes go
            on from there. Default: a temporary folder on this machine.
        options: What each task of the Ray pass gets of the cluster. The result is the same bits
            whatever it is, on one type of device; GPUs and CPUs round differently.

    Returns:
        By module name, or ``module[field]`` for each field of a fused table.

    Raises:
        OptionError: a target that matches nothing.
        DataError: a damaged shard, or NaN or infinity in an output (names module and shard or batch).
    """
    modules = match_modules(model, targets)
    call = forward_fn or forward_batch
    if isinstance(dataset, str):
        dataset = Manifest.load(dataset)
    if not isinstance(dataset, Manifest):
        return _collect_here(model, dataset, modules, forward_fn or (lambda model, batch: model(batch)))
    ensure_ray(object_bytes=model_bytes(model))
    temporary = None if folder is not None else tempfile.mkdtemp(prefix="afm-dist-")
    if temporary is not None and len(ray.nodes()) > 1:
        raise OptionError(
            "on a cluster of several nodes give collect_moments a folder= that all of them share"
        )
    try:
        return _collect_on_ray(
            model, dataset, modules, split, call, batch_size, max_groups, folder or str(temporary), options
        )
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


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


def _collect_on_ray(
    model: nn.Module,
    manifest: Manifest,
    modules: Sequence[str],
    split: str,
    forward_fn: ForwardFn,
    batch_size: int,
    max_groups: int,
    folder: str,
    options: ResourceOptions,
) -> dict[str, Moments]:
    resources = task_resources(options)
    groups = manifest.groups(split, max_groups)
    fingerprint = storage.fingerprint(
        {
            "version": __version__,
            "model": model_digest(model),
            "forward": storage.sha256(cloudpickle.dumps(forward_fn)),
            "data": manifest.fingerprint(),
            "split": split,
            "modules": list(modules),
            "batch_size": batch_size,
            "groups": len(groups),
            "device": resources.device,
        }
    )
    folder = storage.join(folder, f"partials-{fingerprint[:16]}")
    storage.remove_temporaries(folder)
    pass_ = Pass(
        shared=share(model),
        manifest=manifest,
        modules=modules,
        forward_fn=forward_fn,
        batch_size=batch_size,
        folder=folder,
        fingerprint=fingerprint,
        device=resources.device,
    )
    collect_group = _collect_group.options(**resources.ray_options)
    reference = ray.put(pass_)
    with console.progress("statistics", manifest.rows(split)) as advance:
        missing = []
        for i, group in enumerate(groups):
            if _committed(pass_, i):
                advance(sum(shard.rows for shard in group))
            else:
                missing.append(i)
        if len(missing) < len(groups):
            console.say(f"  {len(groups) - len(missing)} of {len(groups)} groups were already committed")
        run_tasks(
            lambda i: collect_group.remote(reference, i, groups[i]),
            missing,
            finished=lambda i, receipt: advance(receipt["rows"]),
            slots=lambda: task_slots(resources),
        )
    merged: dict[str, Moments] = {}
    for i in range(len(groups)):
        for name, part in load_moments(pass_.partial(i), fingerprint=fingerprint).items():
            merged[name] = merged[name].merge(part) if name in merged else part
    storage.remove(folder)
    return merged


def _committed(pass_: Pass, group: int) -> bool:
    """Whether a group's partial is there and sound; a damaged one is deleted and done again."""
    location = pass_.partial(group)
    if not storage.exists(location):
        return False
    try:
        load_moments(location, fingerprint=pass_.fingerprint)
    except DataError as error:
        console.warn(f"{error}; doing this group again")
        storage.remove(location)
        return False
    return True


@ray.remote(max_retries=MAX_RETRIES)
def _collect_group(pass_: Pass, group: int, shards: Sequence[Shard]) -> dict[str, Any]:
    """Commit the partial of one group and return a receipt."""
    torch.set_num_threads(1)
    model = load_shared(pass_.shared).to(pass_.device)
    observer = Observer(model, pass_.modules)
    rows = 0
    with torch.inference_mode(), observer.watching():
        for shard in shards:
            try:
                for batch in read_batches(pass_.manifest, [shard], pass_.batch_size):
                    pass_.forward_fn(model, batch.to(pass_.device))
                    rows += len(batch)
            except ValueError as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"{shard.path}: {error}; look for broken values in this shard or for a diverged model"
                ) from error
    digest = save_moments(pass_.partial(group), observer.moments, fingerprint=pass_.fingerprint)
    return {"group": group, "rows": rows, "digest": digest}


def moments_from_counts(
    model: nn.Module, manifest: Manifest, module: str = "embedding"
) -> dict[str, Moments]:
    """Moments of every field of a fused table from the vocabulary's counts: exact, no inference.

    Args:
        model: Holds the fused table.
        manifest: The dataset whose vocabulary says how often each id occurs in training.
        module: Name of the fused table.

    Returns:
        By ``module[field]``, the same names as ``collect_moments`` gives.

    Raises:
        OptionError: the module is not a fused table.
        DataError: the vocabulary is missing or does not fit, or the table holds NaN.
    """
    table = model.get_submodule(module)
    if not isinstance(table, FusedEmbedding):
        raise OptionError(f"{module} is a {type(table).__name__}; counts serve fused tables only")
    counts = read_counts(manifest)
    moments = {}
    for i, field in enumerate(table.names):
        rows = table.weight.detach()[table.rows(i)].cpu()
        try:
            moments[field_key(module, field)] = moments_of_table(rows, counts[field])
        except (ValueError, KeyError) as error:
            raise DataError(f"{module}, field {field!r}: {error}") from error
    return moments
