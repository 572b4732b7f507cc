"""Measure a checkpoint on a split of a dataset: AUC, log loss, calibration, size, throughput.

python jobs/evaluate.py --data DATA --checkpoint RUN/checkpoint
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes

from afm_dist.errors import DataError, OptionError
from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions


@dataclass(kw_only=True)
class Evaluate:
    """Measure a checkpoint on a split of a dataset."""

    data: str
    """Dataset directory, made by jobs/prepare.py."""
    checkpoint: str
    """Checkpoint directory."""
    split: Literal["train", "validation", "test"] = "test"
    """Which rows."""
    baseline: str | None = None
    """Another checkpoint to compare the throughput with."""
    json: str | None = None
    """Also write the figures to this file."""
    resources: OmitArgPrefixes[ResourceOptions] = AUTOMATIC
    dry_run: bool = False
    """Print what would be done, with what each node must have, and start nothing."""


def main(config: Evaluate) -> None:
    """Run the job."""
    console.info(f"afm-dist evaluate: {config.checkpoint} on {config.split} of {config.data}")
    # torch and Ray take seconds to import: after the first line.
    from afm_dist import storage
    from afm_dist.checkpoint.config import check_schema, load_config
    from afm_dist.checkpoint.pretrained import from_pretrained
    from afm_dist.dataset.labels import Labels, warn_of_undefined
    from afm_dist.evaluation.throughput import measure_throughput
    from afm_dist.planning.capacity import admit
    from afm_dist.planning.estimate import Costs
    from afm_dist.planning.show import show
    from afm_dist.runtime.cluster import check_paths
    from afm_dist.runtime.machine import work_in_driver
    from afm_dist.stages.evaluation import Subject, measure_quality, timing_batch
    from afm_dist.stages.training import external_dataset

    check_paths(data=config.data, checkpoint=config.checkpoint, baseline=config.baseline, json=config.json)
    if config.json:
        check_figures(config.json)
    _, manifest = external_dataset(config.data)
    warn_of_undefined(Labels.of(manifest, config.split))
    for checkpoint in filter(None, (config.checkpoint, config.baseline)):
        check_schema(load_config(checkpoint), manifest, checkpoint=checkpoint)
    costs = Costs.of(load_config(config.checkpoint), manifest, options=config.resources)
    stages = [
        costs.scoring("evaluate", config.split),
        costs.timing("throughput", 2 if config.baseline else 1),
    ]
    plan = costs.plan(stages, output=None)
    if config.dry_run:
        show(plan, check=config.resources.capacity_check)
        return
    admit(plan, check=config.resources.capacity_check)
    work_in_driver()
    subject = Subject(name=config.checkpoint, stage="trained", checkpoint=config.checkpoint)
    row = measure_quality(subject, manifest, config.split, options=config.resources)
    print_quality(row)
    # Written before the speed is measured, which may fail; and again with it.
    if config.json:
        storage.write_json(config.json, row)
    models = {
        checkpoint: from_pretrained(checkpoint)
        for checkpoint in filter(None, (config.baseline, config.checkpoint))
    }
    batch = timing_batch(manifest, config.split)
    speed = measure_throughput(models, batch)[config.checkpoint]
    row["rows_per_second"] = speed.rows_per_second
    console.info(f"throughput  {row['rows_per_second']:,.0f} rows/s (eager, CPU, batch 10000)")
    if config.baseline:
        row["throughput_ratio"] = speed.ratio
        console.info(
            f"            {speed.ratio:.2f} times {config.baseline} ({speed.ratio_min:.2f} to "
            f"{speed.ratio_max:.2f})"
        )
    if config.json:
        storage.write_json(config.json, row)


def check_figures(location: str) -> None:
    """Refuse to write figures over anything but figures.

    Raises:
        OptionError: the file is there and holds something else, or it is a folder.
    """
    from afm_dist import storage

    if not storage.exists(location):
        return
    try:
        before = storage.read_json(location, dict[str, Any])
    except DataError:
        before = {}
    if not {"name", "stage", "auc", "log_loss", "parameters", "bytes"} <= before.keys():
        raise OptionError(f"--json {location}: is there, and holds no figures of this job; name another file")


def print_quality(row: Mapping[str, Any]) -> None:
    """Print what was measured, but the throughput; what the rows do not define is said to be undefined."""
    console.info(f"AUC         {_figure(row['auc'])}")
    console.info(f"log loss    {_figure(row['log_loss'])}")
    console.info(f"calibration {_figure(row['calibration'])} (predicted over observed clicks)")
    for each in row["reliability"]:
        predicted, observed = (each[clicks] / each["weight"] for clicks in ("predicted", "observed"))
        console.info(
            f"            {predicted:.6f} predicted, {observed:.6f} observed, {each['weight']:,} rows"
        )
    console.info(f"            {_figure(row['calibration_error'])} mean distance of the two (expected error)")
    console.info(f"parameters  {row['parameters']:,}")
    console.info(f"bytes       {row['bytes']:,}")


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.6f}"


if __name__ == "__main__":
    console.run_job(Evaluate, main)
