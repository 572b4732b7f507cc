"""What several finished runs amount to side by side: plain values, from which the page is made."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

from afm_dist.errors import DataError
from afm_dist.evaluation.paired import paired
from afm_dist.report import text
from afm_dist.report.finished_run import FinishedRun, names_of
from afm_dist.report.schema import Data, Report, ShippedRecord, Stage
from afm_dist.report.seeds import Measured, defined, differences, measured, over_seeds
from afm_dist.report.summary import ordered

FORMAT_VERSION = 1
KIND = "comparison"
# Options that say where and how a run was done, not what was done.
NO_CHOICE = (
    "data",
    "output",
    "resume",
    "dry_run",
    "resources",
    "workers",
    "checkpoint_minutes",
    "seed",
    "seeds",
)


class ComparedDifference(TypedDict):
    """Of two models of the same seed, over the seeds."""

    mean: float
    deviation: NotRequired[float]
    """Sample standard deviation; of several seeds."""
    noise: NotRequired[bool]
    """Whether chance explains it, by a paired t-test; of several seeds."""


class ComparedRow(TypedDict):
    """One model of one run; of several seeds the mean."""

    run: str
    name: str
    stage: Stage
    ships: bool
    auc: float | None
    """null where it is undefined for a seed, as the log loss."""
    auc_deviation: NotRequired[float]
    log_loss: float | None
    parameters: float
    bytes: float
    smaller: float
    """Bytes of the run's baseline over its own."""
    rows_per_second: float
    throughput_ratio: float
    """Over the run's baseline, timed in turn with it."""
    vs_baseline: NotRequired[ComparedDifference]
    vs_control: NotRequired[ComparedDifference]


class ComparedRun(TypedDict):
    """One run."""

    name: str
    location: str
    title: str
    data: int
    """Index into ``data``."""
    seeds: list[int]
    shipped: str
    created: NotRequired[str]
    command: NotRequired[str]
    environment: NotRequired[dict[str, Any]]


class Comparison(TypedDict):
    """All of ``report.json``."""

    format_version: int
    kind: str
    title: str
    data: list[Data]
    """Each dataset once."""
    runs: list[ComparedRun]
    rows: list[ComparedRow]
    options: dict[str, list[Any]]
    """Those in which the runs differ: the value of each run."""


def compare(runs: Sequence[FinishedRun], *, allow_different_data: bool = False) -> Comparison:
    """Put runs side by side.

    Args:
        runs: Two or more.
        allow_different_data: Runs on different datasets too; they are compared within each only.

    Raises:
        DataError: a run is given twice, or the datasets differ, naming how.
    """
    names = names_of([run.location for run in runs])
    data: list[Data] = []
    compared: list[ComparedRun] = []
    for name, run in zip(names, runs, strict=True):
        _check_seeds(run)
        own = _data_of(run.first)
        index = next((i for i, other in enumerate(data) if _identity(other) == _identity(own)), len(data))
        if index == len(data):
            if data and not allow_different_data:
                raise DataError(_other_data(run.location, own, runs[0].location, data[0]))
            data.append(own)
        compared.append(_run(name, run, index))
    return {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "title": text.listed(names if len(names) < 5 else [*names[:3], f"{len(names) - 3} others"]),
        "data": data,
        "runs": compared,
        "rows": [row for name, run in zip(names, runs, strict=True) for row in _rows(name, run)],
        "options": _options([run.first.get("config") or {} for run in runs]),
    }


def _check_seeds(run: FinishedRun) -> None:
    """Seeds that each made a log of their own (the demo) have no dataset in common."""
    if len({_identity(_data_of(report)) for report in run.reports.values()}) > 1:
        raise DataError(
            f"{run.location}: each seed has a dataset of its own, so there is nothing to compare it on; name "
            "the runs of its seeds"
        )


def _data_of(report: Report) -> Data:
    return report.get("data") or {"name": "unknown"}


def _identity(data: Data) -> str:
    return data.get("fingerprint") or f"unknown: {data}"


def _other_data(location: str, data: Data, first: str, expected: Data) -> str:
    """How two datasets differ, in words."""
    differences = [
        f"fingerprint {data.get('fingerprint', '?')[:12]}, not {expected.get('fingerprint', '?')[:12]}"
    ]
    facts, others = _flat(data), _flat(expected)
    for key in dict.fromkeys([*others, *facts]):
        if facts.get(key) != others.get(key):
            differences.append(f"{key} {facts.get(key, 'unknown')}, not {others.get(key, 'unknown')}")
    return (
        f"{location}: measured on other data than {first} ({'; '.join(differences)}), so their scores say "
        "nothing about each other; --allow-different-data shows them in sections of their own"
    )


def _flat(data: Data) -> dict[str, Any]:
    """What the datasets of two runs may differ in, but for the fingerprint."""
    return {
        "name": data["name"],
        "preset": data.get("preset"),
        "ids": data.get("ids"),
        **{f"{kind} fields": number for kind, number in (data.get("fields") or {}).items()},
        **{f"{name} rows": split["rows"] for name, split in (data.get("splits") or {}).items()},
    }


def _run(name: str, run: FinishedRun, data: int) -> ComparedRun:
    report = run.first
    found: ComparedRun = {
        "name": name,
        "location": run.location,
        "title": report["title"],
        "data": data,
        "seeds": list(run.reports),
        "shipped": report["shipped"]["name"],
    }
    for key in ("created", "command", "environment"):
        if report.get(key):
            found[key] = report[key]
    return found


def _rows(name: str, run: FinishedRun) -> list[ComparedRow]:
    reports = list(run.reports.values())
    if len(reports) > 1:
        over_seeds(run.reports)  # refuses seeds that have other models
    return [
        _row(name, run.first["shipped"], measured(reports, row["name"], row["stage"]))
        for row in ordered(run.first["rows"])
    ]


def _row(run: str, shipped: ShippedRecord, seeds: Sequence[Measured]) -> ComparedRow:
    first = seeds[0][0]
    rows: Sequence[Mapping[str, Any]] = [row for row, _, _ in seeds]
    found: dict[str, Any] = {
        "run": run,
        "name": first["name"],
        "stage": first["stage"],
        "ships": (first["name"], first["stage"]) == (shipped["name"], shipped["stage"]),
        "auc": _mean(rows, "auc"),
        "log_loss": _mean(rows, "log_loss"),
        "parameters": _mean(rows, "parameters"),
        "bytes": _mean(rows, "bytes"),
        "smaller": statistics.mean(baseline["bytes"] / row["bytes"] for row, baseline, _ in seeds),
        "rows_per_second": _mean(rows, "rows_per_second"),
        "throughput_ratio": _mean(rows, "throughput_ratio"),
    }
    aucs = defined([row["auc"] for row in rows])
    if aucs is not None and len(aucs) > 1:
        found["auc_deviation"] = statistics.stdev(aucs)
    found |= {key: _difference(values) for key, values in differences(seeds).items()}
    return cast(ComparedRow, found)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Average a figure over the seeds; None where it is undefined for one."""
    values = defined([row[key] for row in rows])
    return None if values is None else statistics.mean(map(float, values))


def _difference(values: Sequence[float]) -> ComparedDifference:
    if len(values) == 1:
        return {"mean": values[0]}
    test = paired(values)
    return {"mean": test.mean, "deviation": test.deviation, "noise": test.noise}


def _options(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The options in which runs differ; one that a run of an older release did not have is null."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in NO_CHOICE)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}
