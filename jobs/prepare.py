"""Make a dataset directory from a raw click log.

python jobs/prepare.py --source synthetic --rows 400000 --output data/synthetic
python jobs/prepare.py --source criteo --input train.txt --threshold 10 --output data/criteo
python jobs/prepare.py --source tabular --input clicks.csv --label click --output data/clicks
python jobs/prepare.py --describe data/clicks
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from afm_dist import console
from afm_dist.errors import OptionError

if TYPE_CHECKING:
    from data_prep.protocol import Protocol
    from data_prep.sources.source import Source


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Options of the job."""

    source: Literal["synthetic", "criteo", "tabular"] = "synthetic"
    """What the raw log is: a planted one that is written first, Criteo's text, or a CSV or Parquet table."""

    input: tuple[str, ...] = ()
    """The files to read, in order (criteo: plain or gzip; tabular: CSV or Parquet)."""

    output: str | None = None
    """The dataset directory to make."""

    label: str = "label"
    """Tabular: the column that holds 0 or 1."""

    categorical: tuple[str, ...] = ()
    """Tabular: columns to take as categories; the others are inferred, and shown."""

    numeric: tuple[str, ...] = ()
    """Tabular: columns to take as numbers; the others are inferred, and shown."""

    drop: tuple[str, ...] = ()
    """Tabular: columns to leave out."""

    rows: int = 400_000
    """Synthetic: how many rows to write."""

    shape: Literal["criteo", "avazu"] = "criteo"
    """Synthetic: which raw format the log has."""

    seed: int = 0
    """Decides which row goes to which split (synthetic: and the log itself)."""

    threshold: int = 2
    """Tokens counted fewer times than this in the training split become id 0, unknown."""

    validation_share: float = 0.1
    """Share of the rows in the validation split."""

    test_share: float = 0.1
    """Share of the rows in the test split; the rest is for training."""

    rows_per_shard: int = 100_000
    """Largest number of rows of one Parquet file."""

    max_bad_rows: float = 0.001
    """Largest tolerated share of malformed rows; they are kept in OUTPUT/rejected."""

    resume: Literal["auto", "never"] = "auto"
    """auto: skip what is up to date and go on where a run was interrupted; never: start anew."""

    dry_run: bool = False
    """Print what would be read and written, and start nothing."""

    describe: str | None = None
    """Show what a dataset directory holds, and do nothing else."""


def main(config: Prepare) -> None:
    """Run the job."""
    started = time.monotonic()
    console.say(f"afm-dist prepare: {config.describe or f'{config.source} log'}")
    # Imported here, so that the line above appears at once.
    from afm_dist import cluster
    from data_prep import describe, pipeline

    for path in (config.describe, config.output):
        cluster.check_paths(output=path)
    for path in config.input:
        cluster.check_paths(input=path)
    if config.describe is not None:
        describe.show(config.describe)
        return
    output = check(config)
    protocol = _protocol(config)
    if config.dry_run and config.source == "synthetic":
        describe.show_synthetic_plan(config.rows, protocol)
        return
    source = _source(config, output)
    for line in source.describe():
        console.say(line)
    if config.dry_run:
        describe.show_plan(source, protocol)
        return
    manifest = pipeline.prepare(source, output, protocol, resume=config.resume)
    describe.show_summary(manifest)
    console.say(
        f"done in {time.monotonic() - started:.1f} s; look at it: python jobs/prepare.py --describe {output}"
    )


def check(config: Prepare) -> str:
    """Refuse options that do not go together; returns the output directory.

    Raises:
        OptionError: naming the option and the fix.
    """
    if config.output is None:
        raise OptionError("--output: name the dataset directory to make")
    if config.source == "synthetic" and config.input:
        raise OptionError("--input: a synthetic log is written, not read; use --source criteo or tabular")
    if config.source != "synthetic" and not config.input:
        raise OptionError(f"--input: name the file that --source {config.source} reads")
    if config.source != "synthetic" and config.shape != Prepare.shape:
        console.warn(f"--shape is ignored: --source {config.source} reads a log, and writes none")
    if config.source != "tabular":
        for option in ("categorical", "numeric", "drop"):
            if getattr(config, option):
                console.warn(f"--{option} is ignored: the columns of --source {config.source} are fixed")
    return config.output


def _protocol(config: Prepare) -> Protocol:
    from data_prep.protocol import Protocol

    return Protocol(
        seed=config.seed,
        threshold=config.threshold,
        validation_share=config.validation_share,
        test_share=config.test_share,
        rows_per_shard=config.rows_per_shard,
        max_bad_rows=config.max_bad_rows,
    )


def _source(config: Prepare, output: str) -> Source:
    from afm_dist import storage

    paths = [storage.absolute(path) for path in config.input]
    if config.source == "tabular":
        from data_prep.sources.tabular import TabularSource
        from data_prep.sources.tabular_columns import ColumnOptions

        columns = ColumnOptions(
            label=config.label, categorical=config.categorical, numeric=config.numeric, drop=config.drop
        )
        return TabularSource(paths, columns)
    if config.source == "criteo":
        from data_prep.sources.criteo import CriteoSource

        return CriteoSource(paths)
    from data_prep.plan import RAW, check_output
    from data_prep.sources.synthetic import write_synthetic
    from data_prep.sources.synthetic_source import synthetic_source

    check_output(storage.absolute(output))
    raw = storage.join(storage.absolute(output), RAW)
    return synthetic_source(write_synthetic(raw, config.rows, config.seed, config.shape))


if __name__ == "__main__":
    console.run_job(Prepare, main, "Make a dataset directory from a raw click log.")
