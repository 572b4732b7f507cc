"""Score raw rows with a checkpoint: the files that were logged, not a prepared dataset.

python jobs/predict.py --checkpoint RUN/checkpoint --input rows.csv --output scores.parquet
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes

from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from data_prep.scoring import BATCH_SIZE, MAX_BAD_ROWS

if TYPE_CHECKING:
    from afm_dist.dataset.manifest import Manifest
    from data_prep.scoring.pipeline import ScoringSummary

# A field of whose tokens so much more is unknown than in the training data was read otherwise.
SUSPICIOUS_SHARE = 0.5


@dataclass(kw_only=True)
class Predict:
    """Score raw rows with a checkpoint; the result has one row for each of the input, in its order."""

    checkpoint: str
    """Checkpoint directory, with the preprocessing that each job ships in OUTPUT/checkpoint."""
    input: tuple[str, ...]
    """Files, folders, patterns such as 'day_*.gz', or URIs: CSV or Parquet with the columns the model was
    trained on, or Criteo's or Avazu's text; scored in this order, those of a folder or a pattern by name. A
    label is ignored, and need not be there."""
    output: str
    """Parquet file to write: row, score (the probability of a click), logit; null where a row is
    malformed."""
    keep: tuple[str, ...] = ()
    """Columns of the input to carry along, such as an id."""
    source: Literal["criteo", "avazu", "tabular"] | None = None
    """What the files are, if not what the model was trained on (or Parquet)."""
    data: str | None = None
    """For a checkpoint without preprocessing: the dataset directory it was trained on."""
    batch_size: int = BATCH_SIZE
    """Rows of a batch."""
    max_bad_rows: float = MAX_BAD_ROWS
    """Largest tolerated share of malformed rows; file, line and reason of each are in OUTPUT.rejected."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on where a run was interrupted; never: start anew."""
    overwrite: bool = False
    """Replace scores of another model, or of other files (by name and size), in OUTPUT."""
    resources: OmitArgPrefixes[ResourceOptions] = AUTOMATIC
    dry_run: bool = False
    """Print what would be done, with what each node must have, and start nothing."""


def main(config: Predict) -> None:
    """Run the job."""
    started = time.monotonic()
    console.info(f"afm-dist predict: {', '.join(config.input)} with {config.checkpoint}")
    # torch and Ray take seconds to import: after the first line.
    from afm_dist import storage
    from afm_dist.checkpoint import preprocessing
    from afm_dist.checkpoint.config import load_config
    from afm_dist.checkpoint.pretrained import from_pretrained
    from afm_dist.errors import OptionError
    from afm_dist.planning.capacity import admit
    from afm_dist.planning.show import show
    from afm_dist.runtime.cluster import check_paths
    from data_prep.scoring import estimate, pipeline
    from data_prep.scoring.source import open_source
    from data_prep.sources import files
    from data_prep.work import Usage, peak_memory

    check_paths(checkpoint=config.checkpoint, output=config.output, data=config.data)
    for path in config.input:
        check_paths(input=path)
    if not config.input:
        raise OptionError("--input: name the files that hold the rows")
    checkpoint = storage.absolute(config.checkpoint)
    manifest = preprocessing.load(checkpoint, config.data and storage.absolute(config.data))
    paths = files.expand([storage.absolute(path) for path in config.input], as_given=True)
    source = open_source(paths, manifest, name=config.source, keep=config.keep)
    pipeline.check(
        source,
        config.output,
        batch_size=config.batch_size,
        max_bad_rows=config.max_bad_rows,
        overwrite=config.overwrite,
    )
    plan = estimate.scoring_plan(load_config(checkpoint), manifest, source, config.output, config.resources)
    if config.dry_run:
        show(plan, check=config.resources.capacity_check)
        return
    admit(plan, check=config.resources.capacity_check)
    usage = Usage()
    summary = pipeline.predict(
        from_pretrained(checkpoint),
        manifest,
        source,
        config.output,
        batch_size=config.batch_size,
        max_bad_rows=config.max_bad_rows,
        resume=config.resume,
        overwrite=config.overwrite,
        usage=usage,
        options=config.resources,
    )
    print_summary(summary, manifest, config.output)
    peaks = f"{usage.peak_bytes / 1e6:,.0f} MB, of the driver {peak_memory() / 1e6:,.0f} MB"
    console.info(f"done in {time.monotonic() - started:.1f} s, peak memory of a worker {peaks}")


def print_summary(summary: ScoringSummary, manifest: Manifest, output: str) -> None:
    """What was scored, and what looks as if it had been read otherwise than the training data."""
    console.info(f"{summary.rows:,} rows in {output}, mean score {summary.mean:.6f}")
    if summary.rejected:
        console.warn(f"{summary.rejected:,} rows are malformed and have no score; see {output}.rejected")
    before = manifest.facts.get("unknown_share", {})
    usual = before.get("test") or before.get("validation") or {}
    for name, share in summary.unknown.items():
        trained = usual.get(name)
        if share - (trained or 0) > SUSPICIOUS_SHARE:
            # Without rows that were held out nobody knows what was usual.
            then = "" if trained is None else f", {trained:.0%} when it was trained"
            console.warn(
                f"field '{name}': {share:.0%} of the tokens are unknown to the model{then}; is the column "
                "written as it was when the model was trained?"
            )


if __name__ == "__main__":
    console.run_job(Predict, main)
