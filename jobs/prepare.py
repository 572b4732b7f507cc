"""Make a dataset directory from a raw click log.

python jobs/prepare.py --source synthetic --rows 400000 --output data/synthetic
python jobs/prepare.py --preset criteo-x4 --input train.txt --output data/criteo
python jobs/prepare.py --source tabular --input clicks.csv --label click --output data/clicks
python jobs/prepare.py --describe data/clicks
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes

from afm_dist.errors import OptionError
from afm_dist.runtime import console
from afm_dist.runtime.resources import CPU_EACH, CpuOptions

if TYPE_CHECKING:
    from data_prep.presets import PreparationPreset
    from data_prep.protocol import Protocol
    from data_prep.sources.source import Source

SourceName = Literal["synthetic", "criteo", "avazu", "tabular"]


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Options of the job."""

    preset: str = "default"
    """afm-criteo, afm-avazu, criteo-x4, criteo-x1, avazu-x4, criteo-1tb, default, or a .toml file."""

    source: SourceName | None = None
    """What the raw log is: Criteo's or Avazu's text, a CSV or Parquet table, or a synthetic one that is
    written first. Needed where --preset is not for one of them."""

    input: tuple[str, ...] = ()
    """Files, folders, patterns such as 'day_*.gz', or URIs (text: plain, gzip or zstd); they are read in
    natural order, day_2 before day_10."""

    output: str | None = None
    """The dataset directory to make. The same inputs with other options, or changed since, make it anew."""

    overwrite: bool = False
    """Replace a finished dataset of other inputs, or of another source, in OUTPUT."""

    label: str = "label"
    """Tabular: the column that holds 0 or 1."""

    categorical: tuple[str, ...] = ()
    """Tabular: columns to take as categories (7.0 is the id 7); the others are inferred, and shown."""

    numeric: tuple[str, ...] = ()
    """Tabular: columns to take as numbers; the others are inferred, and shown."""

    drop: tuple[str, ...] = ()
    """Tabular: columns to leave out."""

    rows: int = 400_000
    """Synthetic: how many rows to write."""

    shape: Literal["criteo", "avazu"] = "criteo"
    """Synthetic: which raw format the log has."""

    seed: int = 0
    """Decides which row goes to which split, and the order of the training rows (synthetic: and the log)."""

    threshold: int | None = None
    """Tokens counted fewer times than this in the training split become id 0, unknown. [preset: 2]"""

    split_by: Literal["row", "last-file", "column"] | None = None
    """row: at random; last-file: hold out the last file; column: hold out later values. [preset: row]"""

    validation_share: float | None = None
    """Share of the rows (of the last file, with last-file) in the validation split. [preset: 0.1]"""

    test_share: float | None = None
    """Share of the rows (of the last file, with last-file) in the test split. [preset: 0.1]"""

    split_column: str | None = None
    """Split by column: one that grows with time, of numbers (9 is before 10) or of times with the year
    first; a row where it is missing is malformed. It becomes a field only if --categorical, --numeric or
    the preset names it."""

    validation_from: str | None = None
    """Split by column: its first value in the validation split: 9, 2024-04-11, '2024-04-11 09:30', with the
    time zone (+05:30) where the column has several."""

    test_from: str | None = None
    """Split by column: its first value in the test split."""

    rows_per_shard: int | None = None
    """Largest number of rows of one Parquet file. [preset: 100000]"""

    max_bad_rows: float | None = None
    """Largest tolerated share of malformed rows; they are kept in OUTPUT/rejected. [preset: 0.001]"""

    resume: Literal["auto", "never"] = "auto"
    """auto: skip what is up to date and go on where a run was interrupted; never: start anew."""

    resources: OmitArgPrefixes[CpuOptions] = CPU_EACH

    dry_run: bool = False
    """Print what would be read and written, with what each node must have, and start nothing."""

    describe: str | None = None
    """Show what a dataset directory holds, and do nothing else."""


def main(config: Prepare) -> None:
    """Run the job."""
    started = time.monotonic()
    console.info(f"afm-dist prepare: {config.describe or config.output or 'a raw log'}")
    # Imported here, so that the line above appears at once.
    from afm_dist import storage
    from afm_dist.dataset.description import Description
    from afm_dist.dataset.manifest import FILE_NAME
    from afm_dist.planning.capacity import admit
    from afm_dist.runtime import cluster
    from data_prep import describe, dry_run, pipeline, presets
    from data_prep.plan import SYNTHETIC, check_output, check_replaced
    from data_prep.work import Usage

    cluster.check_paths(describe=config.describe, output=config.output)
    for path in config.input:
        cluster.check_paths(input=path)
    if config.describe is not None:
        describe.show(config.describe)
        return
    if config.output is None:
        raise OptionError("--output: name the dataset directory to make")
    preset = presets.load(config.preset)
    name = source_name(config, preset)
    output = config.output
    check(config, name)
    protocol = protocol_of(config, preset)
    # By a dry run too.
    check_output(storage.absolute(output), _input_files(config))
    if name == SYNTHETIC:
        # Before its log is written.
        check_replaced(storage.absolute(output), name, (), overwrite=config.overwrite)
    if config.dry_run and name == SYNTHETIC:
        dry_run.show_synthetic_plan(config.rows, config.shape, protocol, output, config.resources)
        return
    source = SOURCES[name](config, output)
    check_replaced(storage.absolute(output), source.kind, source.inputs, overwrite=config.overwrite)
    check_held_out(source, protocol, _input_files(config)[-1] if config.input else source.paths[-1])
    # By a dry run too.
    source = source.deciding(protocol.split(len(source.paths)))
    for line in source.describe():
        console.info(line)
    if config.dry_run:
        dry_run.show_plan(source, protocol, output, config.resources)
        return
    if not storage.exists(storage.join(output, FILE_NAME)):
        admit(
            dry_run.preparation_plan(source, protocol, output, config.resources),
            check=config.resources.capacity_check,
        )
    usage = Usage()
    manifest = pipeline.prepare(
        source,
        output,
        protocol,
        resume=config.resume,
        overwrite=config.overwrite,
        usage=usage,
        options=config.resources,
    )
    description = Description.of(manifest)
    describe.show_summary(description)
    describe.write_page(description, output)
    memory = f", peak memory of a worker {usage.peak_bytes / 1e6:,.0f} MB" if usage.peak_bytes else ""
    console.info(f"done in {time.monotonic() - started:.1f} s{memory}")
    console.info(f"look at it: python jobs/prepare.py --describe {output}")


def source_name(config: Prepare, preset: PreparationPreset) -> SourceName:
    """The raw format: named, or what the preset is for.

    Raises:
        OptionError: neither names one, or the preset is for a format that is unknown.
    """
    name = config.source or preset.source
    if name is None:
        raise OptionError(
            "--source: say what the raw log is: criteo, avazu or tabular (CSV or Parquet) with --input, or "
            "synthetic to have one written"
        )
    for known in SOURCES:
        if known == name:
            return known
    raise OptionError(f"preset {preset.name}: source = {name!r}; choose from {', '.join(SOURCES)}")


def check(config: Prepare, source: SourceName) -> None:
    """Refuse options that do not go together.

    Raises:
        OptionError: naming the option and the fix.
    """
    if source == "synthetic" and config.input:
        raise OptionError(
            "--input: a synthetic log is written, not read; use --source criteo, avazu or tabular"
        )
    if source != "synthetic" and not config.input:
        raise OptionError(f"--input: name the files that --source {source} reads")
    if source != "synthetic" and config.shape != Prepare.shape:
        console.warn(f"--shape is ignored: --source {source} reads a log, and writes none")
    if source != "synthetic" and config.rows != Prepare.rows:
        console.warn(f"--rows is ignored: --source {source} reads all rows of its files")
    if source == "synthetic" and config.rows < 1:
        raise OptionError(f"--rows {config.rows}: a log needs at least one row")
    if source != "tabular" and config.label != Prepare.label:
        console.warn(f"--label is ignored: the columns of --source {source} are fixed")
    if source != "tabular":
        for option in ("categorical", "numeric", "drop"):
            if getattr(config, option):
                console.warn(f"--{option} is ignored: the columns of --source {source} are fixed")


def protocol_of(config: Prepare, preset: PreparationPreset) -> Protocol:
    """What the preset says, overruled by what the options say."""
    from data_prep.protocol import Protocol

    named = (
        "threshold",
        "split_by",
        "validation_share",
        "test_share",
        "split_column",
        "validation_from",
        "test_from",
        "rows_per_shard",
        "max_bad_rows",
    )
    given = {name: getattr(config, name) for name in named if getattr(config, name) is not None}
    options = dict(preset.options)
    if config.split_by not in (None, "column"):
        for name in ("split_column", "validation_from", "test_from"):
            options.pop(name, None)
    return Protocol(**{**options, **given, "seed": config.seed})


def check_held_out(source: Source, protocol: Protocol, last_named: str) -> None:
    """Say which file is held out, and refuse to hold out another than the last that was named.

    Raises:
        OptionError: the last file holds no rows.
    """
    if protocol.split_by != "last-file":
        return
    if source.paths[-1] != last_named:
        raise OptionError(
            f"--split-by last-file: the last file, {last_named}, holds no rows; leave it out of --input"
        )
    console.info(f"held out for validation and test: {last_named}")


def _input_files(config: Prepare) -> list[str]:
    from afm_dist import storage
    from data_prep.sources import files

    return files.expand([storage.absolute(path) for path in config.input])


def _criteo(config: Prepare, output: str) -> Source:
    from data_prep.sources.criteo import CriteoSource

    return CriteoSource(_input_files(config))


def _avazu(config: Prepare, output: str) -> Source:
    from data_prep.sources.avazu import AvazuSource

    return AvazuSource(_input_files(config))


def _tabular(config: Prepare, output: str) -> Source:
    from data_prep.sources.tabular import TabularSource
    from data_prep.sources.tabular_columns import ColumnOptions

    columns = ColumnOptions(
        label=config.label, categorical=config.categorical, numeric=config.numeric, drop=config.drop
    )
    return TabularSource(_input_files(config), columns)


def _synthetic(config: Prepare, output: str) -> Source:
    from afm_dist import storage
    from data_prep.ownership import RAW
    from data_prep.sources.synthetic import write_synthetic
    from data_prep.sources.synthetic_source import synthetic_source

    raw = storage.join(storage.absolute(output), RAW)
    return synthetic_source(write_synthetic(raw, config.rows, config.seed, config.shape))


SOURCES: Mapping[SourceName, Callable[[Prepare, str], Source]] = {
    "synthetic": _synthetic,
    "criteo": _criteo,
    "avazu": _avazu,
    "tabular": _tabular,
}


if __name__ == "__main__":
    console.run_job(Prepare, main, "Make a dataset directory from a raw click log.")
