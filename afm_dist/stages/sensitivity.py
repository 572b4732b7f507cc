"""Stages that measure what the logit feels of errors: E[ggᵀ] of outputs, over a sample of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.plan import TABLE
from afm_dist.dataset.manifest import Manifest
from afm_dist.runs.run import Run, Stage
from afm_dist.stages.budget import logit_sensitivity
from afm_dist.stages.compression import SENSITIVITY, target_linears
from afm_dist.stages.methods import Methods
from afm_dist.stages.rows import absorbing
from afm_dist.stages.training import Models
from afm_dist.statistics.sensitivity_file import save_sensitivity


def linear_sensitivity(
    run: Run, data: Stage, manifest: Manifest, baseline: Models, methods: Methods
) -> Stage | None:
    """Of the outputs of the baseline's linear layers; None where no method needs it."""
    if not methods.weighted:
        return None
    source = baseline.checkpoints["baseline"]
    return _measure(run, "sensitivity-mlp", data, manifest, baseline, source, target_linears)


def table_sensitivity(
    run: Run, data: Stage, manifest: Manifest, tuned: Models, methods: Methods, *, absorb: bool = False
) -> dict[str, Stage]:
    """Of the embeddings of the fine-tuned models whose tables are weighted, by method.

    With ``absorb`` also of their first-order weights, and for every method: it says in which unit these
    count beside the embeddings.
    """
    return {
        method.name: _measure(
            run,
            f"sensitivity-embedding-{method.name}",
            data,
            manifest,
            tuned,
            tuned.checkpoints[method.linears],
            lambda _: [TABLE],
            absorb=absorb,
        )
        for method in (methods.factored if absorb else methods.weighted)
    }


def _measure(
    run: Run,
    name: str,
    data: Stage,
    manifest: Manifest,
    models: Models,
    source: str,
    modules: Callable[[nn.Module], Sequence[str]],
    *,
    absorb: bool = False,
) -> Stage:
    def work(folder: str) -> None:
        model = from_pretrained(source)
        found = logit_sensitivity(model, manifest, modules(model), absorb=absorb)
        save_sensitivity(storage.join(folder, SENSITIVITY), found)

    return run.stage(name, work, config=absorbing(absorb), inputs=[data, models.stage])
