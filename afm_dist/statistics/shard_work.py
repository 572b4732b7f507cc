"""What a task of the statistics pass over a log does: inference over some shards, watching modules.

A task whose shards hold rows of the sample measures the sensitivity of the logit on these, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from afm_dist.dataset.manifest import Manifest, Shard
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError
from afm_dist.runtime.resources import Device
from afm_dist.runtime.sharing import SharedModel, load_shared
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.observe import ForwardFn, Observer
from afm_dist.statistics.partial_sensitivity import as_moments
from afm_dist.statistics.partials import Partials
from afm_dist.statistics.ray_pass import Work
from afm_dist.statistics.sample import NO_SAMPLE, Sample
from afm_dist.statistics.sensitivity import giving_logits, sensitivity_terms


@dataclass(frozen=True, kw_only=True)
class ShardWork(Work):
    """Moments of the outputs of some modules over groups of shards.

    Attributes:
        shared: The model in the object store.
        manifest: The dataset.
        groups: The shards of each task.
        modules: Names of the modules to watch.
        forward_fn: How the model is called with a batch.
        batch_size: Rows of a batch.
        device: Type of the device the model runs on.
        partials: Where results are committed.
        sensitive: Names of the modules whose sensitivity is measured.
        sample: On which rows.
    """

    shared: SharedModel
    manifest: Manifest
    groups: Sequence[Sequence[Shard]]
    modules: Sequence[str]
    forward_fn: ForwardFn
    batch_size: int
    device: Device
    partials: Partials
    sensitive: Sequence[str] = ()
    sample: Sample = NO_SAMPLE

    @property
    def rows(self) -> list[int]:
        """Of each group."""
        return [sum(shard.rows for shard in shards) for shards in self.groups]

    def moments(self, group: int) -> dict[str, Moments]:
        """Of the rows of some shards, and what their part of the sample adds to the sensitivity."""
        model = load_shared(self.shared).to(self.device)
        observer = Observer(model, self.modules)
        with torch.inference_mode(), observer.watching():
            for shard in self.groups[group]:
                try:
                    for batch in read_batches(self.manifest, [shard], self.batch_size):
                        self.forward_fn(model, batch.to(self.device))
                except ValueError as error:
                    if isinstance(error, DataError):
                        raise
                    raise DataError(
                        f"{shard.path}: {error}; look for broken values in this shard or for a diverged model"
                    ) from error
        if not self.sensitive:
            return observer.moments
        shards = self.groups[group]
        terms = sensitivity_terms(
            model,
            (batch.to(self.device) for batch in self.sample.read(self.manifest, shards)),
            self.sensitive,
            forward=giving_logits(self.forward_fn),
        )
        return observer.moments | as_moments(terms, joined=self.sample.begins_in(shards))
