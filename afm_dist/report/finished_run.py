"""Finished runs of ``jobs/compress.py``, read for a comparison: one report, or one for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.report.schema import Report
from afm_dist.report.validate import as_report
from afm_dist.runs.run import CONFIG, STARTED, SUCCESS, files_of, read_marker

JOB = "compress"
STAGE = "report"
REPORT = "report.json"
SEED = "seed-"


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run and what it found.

    Attributes:
        location: The run directory.
        reports: By seed; of a run without ``--seeds`` the one of its own.
    """

    location: str
    reports: dict[int, Report]

    @property
    def first(self) -> Report:
        """Give the report of the first seed."""
        return next(iter(self.reports.values()))

    @classmethod
    def read(cls, location: str) -> FinishedRun:
        """Read a run directory.

        Raises:
            DataError: it is none, of another job, not finished, or its report is not understood.
        """
        config = _config(location)
        _check_finished(location)
        content = _report(location)
        if "seeds" not in content:
            return cls(location=location, reports={config.get("seed", 0): _valid(content, location)})
        reports = {}
        path = storage.join(location, STAGE, REPORT)
        for seed in storage.as_typed(content["seeds"], list[int], source=path):
            folder = storage.join(location, f"{SEED}{seed}")
            if not storage.exists(folder):
                raise DataError(f"{location}: the run of seed {seed} ({folder}) is missing")
            _check_finished(folder)
            reports[seed] = _valid(_report(folder), folder)
        return cls(location=location, reports=reports)


class _Config(TypedDict, total=False):
    """What is read of a run's ``config.json``."""

    job: str
    seed: int


class _Committed(TypedDict):
    """What is read of the marker of a stage."""

    commit: str


class _Reported(_Committed):
    """What is read of the marker of the report."""

    inputs: dict[str, str]
    files: NotRequired[dict[str, str]]


def _config(location: str) -> _Config:
    path = storage.join(location, CONFIG)
    content = storage.read_json(path, _Config) if storage.exists(path) else None
    job = None if content is None else content.get("job")
    if content is None or job is None:
        raise DataError(f"{location}: not a run directory; name the --output of a finished jobs/compress.py")
    if job != JOB:
        raise DataError(f"{location}: a run of the job {job}; what is compared are runs of jobs/compress.py")
    return content


def _check_finished(location: str) -> None:
    """See that the report is there, and is of what its stages left; others may be left of other options.

    Raises:
        DataError: naming the first stage that is missing.
    """
    unfinished = f"{location}: not finished: its stage"
    again = "give the command of the run again, it goes on where it was"
    marker = storage.join(location, STAGE, SUCCESS)
    if not storage.exists(marker):
        begun = [name for name in storage.list_names(location) if _is_begun(storage.join(location, name))]
        which = f"'{begun[0]}' was begun and not completed" if begun else f"'{STAGE}' is missing"
        raise DataError(f"{unfinished} {which}; {again}")
    written = read_marker(storage.join(location, STAGE), _Reported, fix=again)
    inputs = written["inputs"]
    storage.check_inside(location, inputs, source=marker)
    for name, commit in inputs.items():
        folder = storage.join(location, name)
        done = storage.join(folder, SUCCESS)
        if not storage.exists(done):
            if _is_begun(folder):
                raise DataError(f"{unfinished} '{name}' was begun and not completed; {again}")
            if storage.exists(folder) and not name.startswith(SEED):
                raise DataError(f"{unfinished} '{name}' is missing; {again}")
        elif read_marker(folder, _Committed, fix=again)["commit"] != commit:
            raise DataError(f"{location}: its report is older than its stage '{name}'; {again}")
    files = files_of(storage.join(location, STAGE), written.get("files", {}), again=again)
    if REPORT in files.sha256:
        files.check(REPORT)


def _is_begun(folder: str) -> bool:
    """Whether a stage was begun and not completed."""
    begun, completed = (storage.exists(storage.join(folder, marker)) for marker in (STARTED, SUCCESS))
    return begun and not completed


def _report(location: str) -> dict[str, Any]:
    path = storage.join(location, STAGE, REPORT)
    return storage.read_json(path, dict[str, Any])


def _valid(content: dict[str, Any], location: str) -> Report:
    try:
        return as_report(content, storage.join(location, STAGE, REPORT))
    except DataError as error:
        raise DataError(f"{location}: {error}") from error


def names_of(locations: Sequence[str]) -> list[str]:
    """Name each run by as much of the end of its location as tells it from the others.

    Raises:
        DataError: a run is given twice.
    """
    paths = [storage.absolute(location).rstrip("/") for location in locations]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise DataError(f"{locations[index]}: given twice")
    parts = [path.split("/") for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")
