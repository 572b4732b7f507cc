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
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import cloudpickle
from torch import nn

from afm_dist import __version__, storage
from afm_dist.compression.config import MethodConfig
from afm_dist.compression.outline import Outline
from afm_dist.compression.registry import method_for
from afm_dist.dataset.manifest import MAX_GROUPS, Manifest, Shard
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError, OptionError
from afm_dist.modules.eval_mode import eval_mode
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import console
from afm_dist.runtime.cluster import ensure_ray, task_resources
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.runtime.sharing import model_bytes, model_digest, share, source_of
from afm_dist.statistics.collected import CollectedMoments, Probe
from afm_dist.statistics.keys import module_name
from afm_dist.statistics.moments import Moments, one_thread
from afm_dist.statistics.observe import ForwardFn, Observer, Targets, forward_batch, match_modules
from afm_dist.statistics.partial_sensitivity import split as split_partial
from afm_dist.statistics.partials import Partials
from afm_dist.statistics.ray_pass import RayPass, merge_into
from afm_dist.statistics.sample import NO_SAMPLE, Sample
from afm_dist.statistics.sensitivity import (
    SAMPLE_ROWS,
    SensitivityTerms,
    giving_logits,
    sensitivity_terms,
)
from afm_dist.statistics.shard_work import ShardWork
from afm_dist.statistics.statistics import Statistics

BATCH_SIZE = 8192
# On which a rewritten model is tried.
PROBE_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """How the Ray pass over a dataset is done; of an iterable of batches nothing of it counts.

    Attributes:
        split: Which split.
        batch_size: Rows of a batch.
        max_groups: At most this many tasks and partials. Another number of groups or another batch size is
            another order of summation: equal within the error bound, not in bits.
        folder: Where partials are committed, a path that all workers share; interrupted passes go on from
            there, unless the model, ``forward_fn`` (as far as their source shows), the data or the options
            changed. None: a temporary folder on this machine.
        keep: Leave the partials in ``folder`` until what is made of them is saved; ``remove_partials`` of
            ``afm_dist.statistics.partials`` deletes them then.
        resources: What each task gets of the cluster. The result is the same bits whatever it is, on one type
            of device; GPUs and CPUs round differently.
        emit: Gets the events, e.g. ``Run.event``.
    """

    split: str = "train"
    batch_size: int = BATCH_SIZE
    max_groups: int = MAX_GROUPS
    folder: str | None = None
    keep: bool = False
    resources: ResourceOptions = AUTOMATIC
    emit: Emit = no_events


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
    emit: Emit = no_events,
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
    call = forward_fn or (forward_batch if isinstance(dataset, str | Manifest) else _call_on_batch)
    settings = PassOptions(
        split=split,
        batch_size=batch_size,
        max_groups=max_groups,
        folder=folder,
        keep=keep,
        resources=options,
        emit=emit,
    )
    moments, _ = _collect(model, dataset, match_modules(model, targets), call, settings)
    return moments


def collect_statistics(
    model: nn.Module,
    data: str | Manifest | Iterable[Any],
    targets: Targets,
    *,
    methods: Sequence[MethodConfig] | None = None,
    forward_fn: ForwardFn | None = None,
    settings: PassOptions = PassOptions(),
) -> Statistics:
    """Collect all that methods need to know of some modules: moments, and the sensitivity of the logit.

    The data are gone through once. Of a dataset that is one Ray pass, out of core, with committed partials.
    The sensitivity is measured on a sample (about 65,536 rows from all over the split): tasks whose shards
    hold some of it read these rows a second time, for the gradients. The moments have the bits of
    ``collect_moments``, the sensitivity those of ``output_sensitivity`` over the sample in one process.

    Args:
        model: Any module; runs in eval mode, is left as it was (see ``eval_mode``).
        data: A dataset directory or its manifest; or any iterable of batches, gone through in this process:
            there the sensitivity is that of the first 65,536 logits, so their order should be random.
        targets: Name patterns (``"mlp.*"``) or types (``nn.Linear``) of modules.
        methods: Configs that will be planned: the sensitivity is measured of the modules for which one of
            them needs it. A budget needs it whatever the method. None: of all modules.
        forward_fn: Called as ``forward_fn(model, batch)``, returns the logits (B,); default
            ``model(batch.ids, batch.numeric)`` on a dataset, ``model(batch)`` otherwise.
        settings: Of the Ray pass.

    Returns:
        What ``plan`` and ``compress_`` take. Without sensitivity, and with a warning, are modules on whose
        outputs no logit depends.

    Raises:
        OptionError: as ``collect_moments``, or a forward that gives no logits.
        DataError: as ``collect_moments``.
        StageError: as ``collect_moments``.
    """
    modules = match_modules(model, targets)
    sensitive = [name for name in modules if _needs_sensitivity(model.get_submodule(name), methods)]
    call = forward_fn or (forward_batch if isinstance(data, str | Manifest) else _call_on_batch)
    moments, terms = _collect(model, data, modules, call, settings, sensitive)
    unreached = {name for name in sensitive if name not in terms.reached}
    if unreached:
        console.warn(
            f"no sensitivity of {', '.join(sorted(unreached))}: no logit depends on their outputs; a budget "
            "leaves them as they are"
        )
    found = {key: own for key, own in terms.mean().items() if module_name(key) not in unreached}
    return Statistics(moments, found if sensitive else None)


def _needs_sensitivity(module: nn.Module, methods: Sequence[MethodConfig] | None) -> bool:
    if methods is None:
        return True
    found = [(method_for(config, module), config) for config in methods]
    return any(method is not None and method.needs_sensitivity(config) for method, config in found)


def _call_on_batch(model: nn.Module, batch: Any) -> Any:
    return model(batch)


def _collect(
    model: nn.Module,
    dataset: str | Manifest | Iterable[Any],
    modules: Sequence[str],
    call: ForwardFn,
    settings: PassOptions,
    sensitive: Sequence[str] = (),
) -> tuple[CollectedMoments, SensitivityTerms]:
    """Collect moments of some modules, and the terms of the sensitivity of some of them."""
    if isinstance(dataset, str):
        dataset = Manifest.load(dataset)
    if not isinstance(dataset, Manifest):
        return _collect_here(model, dataset, modules, call, sensitive)
    if not 1 <= settings.max_groups <= MAX_GROUPS:
        raise OptionError(f"max_groups {settings.max_groups}: must lie between 1 and {MAX_GROUPS}")
    groups = dataset.groups(settings.split, settings.max_groups)
    ensure_ray(object_bytes=model_bytes(model))
    with _shared_folder(settings.folder) as parent:
        resources = task_resources(settings.resources)
        facts = {
            "version": __version__,
            "torch": torch.__version__,
            "model": model_digest(model),
            "forward": storage.sha256(_pickled(call) + source_of(call).encode()),
            "data": dataset.fingerprint(),
            "split": settings.split,
            "modules": modules,
            "batch_size": settings.batch_size,
            "groups": len(groups),
            "device": resources.device,
            **({"sensitive": list(sensitive)} if sensitive else {}),
        }
        work = ShardWork(
            shared=share(model),
            manifest=dataset,
            groups=groups,
            modules=modules,
            forward_fn=call,
            batch_size=settings.batch_size,
            device=resources.device,
            partials=Partials(parent=parent, facts=facts),
            sensitive=sensitive,
            sample=Sample.of(dataset, settings.split) if sensitive else NO_SAMPLE,
        )
        moments: dict[str, Moments] = {}
        total = SensitivityTerms()
        for part in RayPass(work, resources, settings.emit).parts():
            own, terms = split_partial(part)
            merge_into(moments, own)
            for term in terms:
                total.add(term)
        if not settings.keep:
            work.partials.end()
    probe = _probe(dataset, groups, call)
    return CollectedMoments(moments, probe=probe, bytes_of=Outline(model, modules)), total


def _probe(dataset: Manifest, groups: Sequence[Sequence[Shard]], forward_fn: ForwardFn) -> Probe | None:
    """Read a few rows when they are needed."""
    shards = [shard for group in groups for shard in group]

    def run(model: nn.Module) -> Any:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        batch = next(read_batches(dataset, shards[:1], PROBE_ROWS))
        return forward_fn(model, batch.to(device))

    return run if shards else None


@contextmanager
def _shared_folder(folder: str | None) -> Iterator[str]:
    """Return the folder that was given, or a temporary one where this machine is all there is."""
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
    model: nn.Module,
    batches: Iterable[Any],
    modules: Sequence[str],
    forward_fn: ForwardFn,
    sensitive: Sequence[str],
) -> tuple[CollectedMoments, SensitivityTerms]:
    observer = Observer(model, modules)
    probe: Probe | None = None
    total = SensitivityTerms()
    logits = giving_logits(forward_fn)
    with eval_mode(model) as apart, torch.no_grad():
        for i, batch in enumerate(batches):
            probe = probe or _call(forward_fn, batch)
            try:
                with apart(), observer.watching():
                    forward_fn(model, batch)
                if sensitive and total.logits < SAMPLE_ROWS:
                    with one_thread():
                        for term in sensitivity_terms(model, [batch], sensitive, forward=logits):
                            total.add(term)
            except OptionError:
                raise
            except ValueError as error:
                raise DataError(
                    f"batch {i}: {error}; look for broken values in it or for a diverged model"
                ) from error
    return CollectedMoments(observer.moments, probe=probe, bytes_of=Outline(model, modules)), total


def _call(forward_fn: ForwardFn, batch: Any) -> Probe:
    return lambda model: forward_fn(model, batch)
