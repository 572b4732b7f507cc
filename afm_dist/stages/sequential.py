"""The stage that takes the statistics of each linear layer behind compressed layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from torch import nn

from afm_dist import storage
from afm_dist.checkpoint.pretrained import from_pretrained
from afm_dist.compression.sequential import compress_in_turn_
from afm_dist.dataset.manifest import Manifest
from afm_dist.methods.low_rank.config import Activation
from afm_dist.methods.low_rank.ranks import Policy, plan_ranks
from afm_dist.runs.run import Run, Stage
from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.stages.compression import MOMENTS
from afm_dist.stages.methods import Methods
from afm_dist.stages.training import Models
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.keys import module_name
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import load_moments, save_moments


def statistics_in_turn(
    run: Run,
    data: Stage,
    manifest: Manifest,
    baseline: Models,
    statistics: Stage,
    methods: Methods,
    *,
    policy: Policy,
    activation: Activation,
    kappa: float,
    options: ResourceOptions = AUTOMATIC,
) -> Stage | None:
    """Moments of each linear layer, once those before it are compressed: a Ray pass for each but the first.

    The ranks are those of the layers in the uncompressed model, so that the rows have as many bytes.

    Args:
        run: The run directory.
        data: The dataset's stage.
        manifest: The dataset.
        baseline: The uncompressed model.
        statistics: Moments of its linear layers.
        methods: What the run compares.
        policy: How the ranks are chosen.
        activation: Between the factors.
        kappa: Of the shifted ReLU.
        options: What each task gets.

    Returns:
        None where no method needs it.
    """
    if not methods.in_turn:
        return None

    def work(folder: str) -> None:
        whole = load_moments(statistics.file(MOMENTS))
        plan = plan_ranks(whole, policy, activation=activation, kappa=kappa)
        # Folders are named after the modules, which the file names.
        storage.check_inside(folder, plan.modules, source=statistics.file(MOMENTS))

        def collect(model: nn.Module, name: str) -> Mapping[str, Moments]:
            if name == plan.entries[0].name:
                return {key: own for key, own in whole.items() if module_name(key) == name}
            console.say(f"  {name}, behind the compressed layers")
            return collect_moments(
                model,
                manifest,
                [name],
                folder=storage.join(folder, name),
                keep=True,
                options=options,
                emit=run.event,
            )

        moments = compress_in_turn_(from_pretrained(baseline.checkpoints["baseline"]), plan, collect)
        save_moments(storage.join(folder, MOMENTS), moments)
        for entry in plan.entries:
            storage.remove(storage.join(folder, entry.name))

    return run.stage(
        "statistics-sequential",
        work,
        config={"policy": asdict(policy), "activation": activation, "kappa": kappa},
        inputs=[data, baseline.stage, statistics],
    )
