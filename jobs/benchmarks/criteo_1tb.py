"""What the terabyte log would cost, worked out from measured rates: the tables of docs/criteo-1tb.md.

The page holds the rates it was worked out from. With the JSON of the suites named there
(``jobs/benchmark.py SUITE --json FILE``), the rates and everything that follows are written anew:

python -m jobs.benchmarks.criteo_1tb docs/criteo-1tb.md --cores 2 \
    --figures prepare.json statistics.json pass.json training.json inference.json

Without ``--figures`` the tables are made again from the rates in the page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import tyro

from afm_dist import storage
from afm_dist.dataset.manifest import MAX_GROUPS
from afm_dist.errors import DataError, OptionError
from afm_dist.planning.estimate import BYTES_PER_SCORED_ROW, NETWORK_BYTES_PER_SECOND
from afm_dist.runtime import console
from jobs.benchmarks import criteo_shape

# Days 0 to 22, and day 23 in two halves (MLPerf's DLRM).
TRAINING_ROWS = 4_195_197_692
HELD_OUT_ROWS = 178_274_637
DAYS = 24
ROWS_PER_SHARD = 1_000_000  # of the preset criteo-1tb
CORES = (32, 128, 512)
CORES_OF_A_NODE = 16
FINETUNING_BATCH = 20_000
VOCABULARY = 10_000_000  # of the training suite, whose rate and whose ids are used
# The row of a table in a gradient: 16 dimensions and the linear weight, each with its number.
GRADIENT_BYTES = 4 * (criteo_shape.EMBEDDING_DIM + 1) + 2 * 8
DENSE_WEIGHTS = criteo_shape.INPUTS * 400 + 2 * 400 * 400 + 400
TABLE_IDS = 100_000_000
ID_BYTES = 4 * (criteo_shape.EMBEDDING_DIM + 1)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What was measured, per core where that makes sense."""

    prepare: float
    read: float
    row_bytes: float
    statistics: float
    train: float
    score: float
    partial: float
    merge: float
    decompose: float
    wide_partial: float
    wide_merge: float
    wide_decompose: float


@dataclass(frozen=True)
class FigureSource:
    """Where a rate comes from.

    Attributes:
        suite: Of the benchmark.
        name: Of its figure, with "N threads" for the threads of all cores.
        unit: As the page has it.
        per_core: Whether the figure is of all cores together.
    """

    suite: str
    name: str
    unit: str
    per_core: bool = False

    def of(self, cores: int) -> str:
        """The name of the figure on a machine of so many cores."""
        return self.name.replace("N threads", f"{cores} thread{'s' * (cores > 1)}")

    def command(self, cores: int) -> str:
        """What measures it there."""
        threads = f"--threads {cores} " if "N threads" in self.name else ""
        return f"python jobs/benchmark.py {self.suite} {threads}--json {self.suite}.json"


SOURCES: Mapping[str, FigureSource] = {
    "prepare": FigureSource("prepare", "prepare, log to shards", "rows/s and core", True),
    "read": FigureSource("prepare", "read shards, batch 10000", "rows/s and core"),
    "row_bytes": FigureSource("prepare", "a row in shards", "bytes"),
    "statistics": FigureSource("pass", "pass on Ray", "rows/s and core", True),
    "train": FigureSource("training", "batch 10000: DeepFM, 1e+07 ids", "rows/s and core", True),
    "score": FigureSource(
        "inference", "Criteo, batch 10000, N threads, eager: DeepFM", "rows/s and core", True
    ),
    "partial": FigureSource("statistics", "Criteo: partial of two layers", "MB"),
    "merge": FigureSource("statistics", "Criteo: load and merge a partial", "ms"),
    "decompose": FigureSource("statistics", "Criteo: decompose two layers", "ms"),
    "wide_partial": FigureSource("statistics", "Avazu: partial of two layers", "MB"),
    "wide_merge": FigureSource("statistics", "Avazu: load and merge a partial", "ms"),
    "wide_decompose": FigureSource("statistics", "Avazu: decompose two layers", "ms"),
}


class Figure(TypedDict):
    """What is read of a figure."""

    suite: str
    name: str
    value: float


def rates_of(figures: Iterable[Mapping[str, Any]], cores: int) -> Rates:
    """The rates in the figures of some suites.

    Raises:
        DataError: a figure is missing.
    """
    values = {(figure["suite"], figure["name"]): float(figure["value"]) for figure in figures}
    found = {}
    for rate, source in SOURCES.items():
        name = source.of(cores)
        if (source.suite, name) not in values:
            raise DataError(
                f"no figure {name!r} of suite {source.suite!r}; run {source.command(cores)} on a machine of "
                f"{cores} cores (--cores)"
            )
        value = values[source.suite, name] / (cores if source.per_core else 1)
        found[rate] = float(f"{value:.3g}")
    return Rates(**found)


def rates_in(page: str) -> Rates:
    """The rates that a page names.

    Raises:
        DataError: one is missing.
    """
    named = {name: value.replace(",", "") for name, value in re.findall(r"\| `(\w+)` \| ([\d.,]+) \|", page)}
    missing = [field.name for field in fields(Rates) if field.name not in named]
    if missing:
        raise DataError(f"the page does not name the rate {missing[0]!r}")
    return Rates(**{field.name: float(named[field.name]) for field in fields(Rates)})


def written(page: str, rates: Rates) -> str:
    """The page with all its tables worked out from some rates.

    Raises:
        DataError: the page lacks the place of a table.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise DataError(f"the page has no place for the table {name!r}: {begin.strip()} … {end}")
        page = f"{before}{begin}\n{table(rates)}\n\n{end}{after}"
    return page


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rates_table(rates: Rates) -> str:
    """What was measured."""
    rows = (
        (f"`{name}`", number(value), SOURCES[name].unit, f"`{SOURCES[name].suite}`: {SOURCES[name].name}")
        for name, value in asdict(rates).items()
    )
    lines = ["| rate | value | unit | figure |", "| --- | --: | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def time_table(rates: Rates) -> str:
    """Every stage on every number of cores."""
    stages: Mapping[str, Callable[[int], float]] = {
        "prepare, text files": lambda cores: prepare_seconds(rates, cores),
        "statistics of the MLP": lambda cores: statistics_seconds(rates, cores),
        "merging and decomposing on the driver": lambda _: driver_seconds(rates),
        "one epoch of one model": lambda cores: epoch_seconds(rates, cores),
        "scoring the test half, one model": lambda cores: HELD_OUT_ROWS / 2 / (rates.score * cores),
    }
    head = ["stage", *(f"{cores} cores" for cores in CORES)]
    return _table(head, ((name, *(duration(seconds(c)) for c in CORES)) for name, seconds in stages.items()))


def storage_table(rates: Rates) -> str:
    """What lies on the shared storage."""
    rows = TRAINING_ROWS + HELD_OUT_ROWS
    sizes = {
        "shards": rows * rates.row_bytes,
        f"partials, two layers of 400 ({MAX_GROUPS} groups)": MAX_GROUPS * rates.partial * 1e6,
        f"partials, two layers of 2000 ({MAX_GROUPS} groups)": MAX_GROUPS * rates.wide_partial * 1e6,
        f"a model, per {TABLE_IDS // 1_000_000} million ids": TABLE_IDS * ID_BYTES,
        "a checkpoint in training, with two moments, per as many": 3 * TABLE_IDS * ID_BYTES,
    }
    return _table(["what", "size"], ((name, size(count)) for name, count in sizes.items()))


def traffic_table(rates: Rates) -> str:
    """What the stages ask of the storage and of the network between the workers."""
    head = ["", *(f"{cores} cores" for cores in CORES)]
    statistics = [min(cores, MAX_GROUPS) * rates.statistics * rates.row_bytes for cores in CORES]
    training = [TRAINING_ROWS * rates.row_bytes / epoch_seconds(rates, cores) for cores in CORES]
    rows = [
        ["workers of a training"] + [str(workers(cores)) for cores in CORES],
        ["statistics: read from the storage"] + [f"{size(rate)}/s" for rate in statistics],
        ["training: read from the storage"] + [f"{size(rate)}/s" for rate in training],
        ["training: received by a worker in a step"] + [size(exchange_bytes(cores)) for cores in CORES],
        ["training: computing in a step"] + [duration(step_seconds(rates, cores)) for cores in CORES],
        ["training: exchange in a step"] + [duration(exchange_seconds(cores)) for cores in CORES],
    ]
    return _table(head, rows)


def limits_list(rates: Rates) -> str:
    """What is the first to bind, in order of cores."""
    shards = math.ceil(TRAINING_ROWS / ROWS_PER_SHARD)
    day = (TRAINING_ROWS + HELD_OUT_ROWS) / DAYS / rates.prepare
    group = TRAINING_ROWS / MAX_GROUPS / rates.statistics
    wide = driver_seconds(rates, wide=True)
    narrow, scores = driver_seconds(rates), HELD_OUT_ROWS / 2 * BYTES_PER_SCORED_ROW
    few, many = (duration(epoch_seconds(rates, cores)) for cores in (CORES[0], CORES[-1]))
    lines = [
        f"**{DAYS} cores, compressed days.** A compressed file cannot be cut, so a day is one task when it "
        f"is parsed, at most {duration(day)} on its core, whatever the cluster. Text is cut into blocks.",
        f"**{balance_cores(rates)} cores, the exchange of gradients.** From there on a step of "
        f"{FINETUNING_BATCH:,} rows spends more time on gradients than on computing; an epoch takes {few} "
        f"on {CORES[0]} cores, {many} on {CORES[-1]}.",
        f"**{MAX_GROUPS} cores, the number of groups.** The statistics have {MAX_GROUPS} tasks: of "
        f"{CORES[-1]} cores half are idle. A task takes {duration(group)}, and that is also what a lost "
        f"worker costs. Where the cores do not divide {MAX_GROUPS}, the last wave is not full.",
        f"**The driver's sum** takes {duration(narrow)} with two layers of 400, {duration(wide)} with two "
        "layers of 2000, on one core and whatever the cluster.",
        f"**The driver's memory in the evaluation**: {size(scores)} for the scores of the test half.",
        f"**The object store** is asked {2 * shards:,} times in a pass, twice for each of {shards:,} shards.",
    ]
    return "\n".join(f"- {line}" for line in lines)


TABLES: Mapping[str, Callable[[Rates], str]] = {
    "rates": rates_table,
    "time": time_table,
    "storage": storage_table,
    "traffic": traffic_table,
    "limits": limits_list,
}


def prepare_seconds(rates: Rates, cores: int) -> float:
    """Of all days, from text to shards."""
    return (TRAINING_ROWS + HELD_OUT_ROWS) / (rates.prepare * cores)


def statistics_seconds(rates: Rates, cores: int) -> float:
    """Of the pass: waves of whole groups."""
    return math.ceil(MAX_GROUPS / cores) * TRAINING_ROWS / MAX_GROUPS / rates.statistics


def driver_seconds(rates: Rates, *, wide: bool = False) -> float:
    """Of summing all partials and decomposing two layers."""
    merge, decompose = (rates.wide_merge, rates.wide_decompose) if wide else (rates.merge, rates.decompose)
    return (MAX_GROUPS * merge + decompose) / 1000


def workers(cores: int) -> int:
    """Training workers: one a node."""
    return max(1, cores // CORES_OF_A_NODE)


def step_seconds(rates: Rates, cores: int) -> float:
    """Of computing a step of fine-tuning, without the exchange."""
    return FINETUNING_BATCH / (rates.train * cores)


def exchange_bytes(cores: int) -> float:
    """What a worker receives in a step: dense gradients around a ring, sparse ones of all others."""
    n = workers(cores)
    dense = 2 * (n - 1) / n * 4 * DENSE_WEIGHTS
    return dense + (n - 1) * distinct_ids(FINETUNING_BATCH // n) * GRADIENT_BYTES


def exchange_seconds(cores: int) -> float:
    """Of receiving it; nothing else is done meanwhile."""
    return exchange_bytes(cores) / NETWORK_BYTES_PER_SECOND


def epoch_seconds(rates: Rates, cores: int) -> float:
    """Of all steps of one model over the training split."""
    return TRAINING_ROWS / FINETUNING_BATCH * (step_seconds(rates, cores) + exchange_seconds(cores))


def balance_cores(rates: Rates) -> int:
    """The first number of whole nodes at which the exchange takes as long as the computing."""
    nodes = 2
    while exchange_seconds(nodes * CORES_OF_A_NODE) < step_seconds(rates, nodes * CORES_OF_A_NODE):
        nodes += 1
    return nodes * CORES_OF_A_NODE


@lru_cache
def distinct_ids(rows: int) -> int:
    """Rows of the tables that a batch of generated rows touches."""
    sizes = criteo_shape.cardinalities(VOCABULARY)
    (batch,) = criteo_shape.batches(sizes, rows, 1)
    return sum(len(column.unique()) for column in batch.ids.T)


def number(value: float) -> str:
    """Three digits, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """In the largest unit of which there is more than one."""
    for unit, length in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{1000 * seconds:.2g} ms"


def size(count: float) -> str:
    """In decimal units."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return f"{count:.0f} bytes"


@dataclass(frozen=True, kw_only=True)
class Page:
    """Work the page about the terabyte log out again."""

    page: tyro.conf.Positional[str]
    """The page, with the places of its tables."""
    figures: tuple[str, ...] = ()
    """JSON of the suites; without any the rates in the page are used."""
    cores: int | None = None
    """Cores of the machine that the figures are from."""


def main(config: Page) -> None:
    """Run the job."""
    path = Path(config.page)
    page = path.read_text(encoding="utf-8")
    if config.figures and config.cores is None:
        raise OptionError("--figures also needs --cores: how many cores the machine of the figures has")
    if config.figures:
        assert config.cores is not None
        figures = [figure for name in config.figures for figure in storage.read_json(name, list[Figure])]
        rates = rates_of(figures, config.cores)
    else:
        rates = rates_in(page)
    path.write_text(written(page, rates), encoding="utf-8")
    console.info(f"{config.page}: written")


if __name__ == "__main__":
    console.run_job(Page, main)
