"""Run directories: stages that are done once, resumed, and redone when their inputs change.

A run directory holds ``config.json``, ``environment.json``, ``events.jsonl`` and one folder per
stage. A finished stage has a ``_SUCCESS`` file with its fingerprint (hash of its configuration
and its inputs' fingerprints), a commit id that is new each time the stage is done, and the digests
of the files it left; a stage is up to date when its fingerprint and the commit ids of its inputs are
those recorded, and its files are as they were.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

from afm_dist import __version__, storage
from afm_dist.errors import DataError, OptionError
from afm_dist.runs import stage_files
from afm_dist.runs.events import EventLog, now
from afm_dist.runtime import console

Resume = Literal["auto", "never"]

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
EVENTS = "events.jsonl"
SUCCESS = "_SUCCESS"
STARTED = "_STARTED"
STAGE_FIX = "delete the folder of this stage, or give --resume never, to do it again"
MARKERS = frozenset({SUCCESS, STARTED})
RECORDED_PACKAGES = ("torch", "ray", "pyarrow", "polars", "numpy", "safetensors")


class _Config(TypedDict, total=False):
    """What is read of ``config.json``."""

    job: str


class _Environment(TypedDict):
    """What is read of ``environment.json``."""

    afm_dist: str
    packages: dict[str, str]


class Started(TypedDict):
    """What ``_STARTED`` says: the work that a stage is about to do."""

    fingerprint: str
    version: NotRequired[str]
    config: dict[str, Any]
    inputs: dict[str, str]


class Done(Started):
    """What ``_SUCCESS`` says."""

    commit: str
    seconds: float
    finished: NotRequired[str]
    files: NotRequired[dict[str, str]]


Marker = TypeVar("Marker")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A finished stage, or an input from outside the run.

    Attributes:
        name: Name of the stage.
        path: Its folder.
        fingerprint: Hash of its configuration and its inputs' fingerprints.
        commit: Identity of this particular result; for an input from outside, its content.
    """

    name: str
    path: str
    fingerprint: str
    commit: str

    @classmethod
    def external(cls, name: str, path: str, content: str) -> Stage:
        """Register something made outside this run, identified by the digest of its content."""
        return cls(name=name, path=path, fingerprint=content, commit=content)

    def file(self, *parts: str) -> str:
        """Return the location of a file of this stage."""
        return storage.join(self.path, *parts)


class Run:
    """A run directory and the rule that decides which stages still have to be done.

    Args:
        path: The run directory; created if it is not there.
        job: Name of the job, for messages.
        config: The job's configuration as plain values, kept in ``config.json``.
        resume: ``auto`` skips stages that are up to date, ``never`` redoes them all.

    Attributes:
        stages: What was done or found up to date so far, in order.
        redone: Names of those that were done.
        reused: Names of those that were up to date.

    Raises:
        OptionError: the folder holds something else; stages clear their folders.
    """

    def __init__(self, path: str, *, job: str, config: Mapping[str, Any], resume: Resume = "auto") -> None:
        self.path = storage.absolute(path)
        check_output(self.path, job=job)
        self.resume = resume
        self.stages: list[Stage] = []
        self.redone: list[str] = []
        self.reused: list[str] = []
        self._events = EventLog(storage.join(self.path, EVENTS))
        storage.write_json(storage.join(self.path, CONFIG), {"job": job, **config})
        storage.write_json(storage.join(self.path, ENVIRONMENT), environment())
        self.event("job started", job=job)

    def event(self, what: str, /, **details: Any) -> None:
        """Add one line to ``events.jsonl``; an ``Emit`` to hand to what a stage calls."""
        self._events.add(what, **details)

    def _mark(self, what: str, **details: Any) -> None:
        """Write an event at once, also on an object store."""
        self._events.add(what, **details)
        self._events.flush()

    def stage(
        self,
        name: str,
        work: Callable[[str], None],
        *,
        config: Mapping[str, Any] | None = None,
        inputs: Sequence[Stage] = (),
    ) -> Stage:
        """Run a stage, unless it is up to date.

        Args:
            name: Folder name of the stage.
            work: Called with the stage's folder; what it leaves there is the result.
            config: Everything besides the inputs that the result depends on.
            inputs: The stages it reads.
        """
        path = storage.join(self.path, name)
        marker: Started = {
            "fingerprint": storage.fingerprint(
                {
                    "version": __version__,
                    "config": config or {},
                    "inputs": {stage.name: stage.fingerprint for stage in inputs},
                }
            ),
            "version": __version__,
            "config": dict(config or {}),
            "inputs": {stage.name: stage.commit for stage in inputs},
        }
        resumable = self._resumable(path, marker)
        reason = self._why_redo(path, marker, resumable=resumable)
        if reason is None:
            done = read_success(path)
            self.reused.append(name)
            self.event("stage up to date", stage=name, fingerprint=marker["fingerprint"])
            console.info(f"[{name}] up to date")
            self.stages.append(
                Stage(name=name, path=path, fingerprint=done["fingerprint"], commit=done["commit"])
            )
            return self.stages[-1]

        console.info(f"[{name}] {reason}")
        self._mark("stage started", stage=name, reason=reason)
        if not resumable:
            self._clear(name, path)
        stage_files.record_begin(self.path, name)
        storage.write_json(storage.join(path, STARTED), marker)
        started = time.monotonic()
        try:
            work(path)
        except BaseException as error:
            self._mark("stage failed", stage=name, error=f"{type(error).__name__}: {error}")
            raise
        seconds = round(time.monotonic() - started, 3)
        stage_files.record_end(self.path, name)
        commit = uuid.uuid4().hex
        storage.write_sealed_json(
            storage.join(path, SUCCESS),
            {
                **marker,
                "commit": commit,
                "seconds": seconds,
                "finished": now(),
                "files": storage.of_tree(path, without=MARKERS).sha256,
            },
        )
        storage.remove(storage.join(path, STARTED))
        self.redone.append(name)
        self._mark("stage finished", stage=name, seconds=seconds)
        console.info(f"[{name}] done in {seconds:.1f} s")
        self.stages.append(Stage(name=name, path=path, fingerprint=marker["fingerprint"], commit=commit))
        return self.stages[-1]

    def _clear(self, name: str, path: str) -> None:
        """Remove what an earlier run left of a stage.

        Raises:
            OptionError: there are files of others in its folder.
        """
        if foreign := stage_files.foreign_files(self.path, name, markers=(STARTED, SUCCESS)):
            shown = ", ".join(f"{name}/{file}" for file in foreign[:3])
            raise OptionError(
                f"--output {self.path}: the stage '{name}' is to be done anew, and its folder holds files "
                f"that are not its own ({shown}); move them away and run the same command again"
            )
        stage_files.record_begin(self.path, name)
        # The markers first: what is left of a folder half removed must not look like a stage.
        for location in (storage.join(path, STARTED), storage.join(path, SUCCESS), path):
            storage.remove(location)

    def _why_redo(self, path: str, marker: Started, *, resumable: bool) -> str | None:
        """Explain why a stage has to run; None when it is up to date."""
        success = storage.join(path, SUCCESS)
        if not storage.exists(success):
            if resumable:
                return "going on: an earlier run was interrupted here"
            if storage.exists(storage.join(path, STARTED)):
                changed = "--resume never" if self.resume == "never" else "its options or inputs changed"
                return f"running anew: an earlier run was interrupted here, and {changed}"
            return "running"
        if self.resume == "never":
            return "running again: --resume never"
        try:
            done = read_success(path)
        except DataError as error:
            return f"running again: {error}"
        for name, commit in marker["inputs"].items():
            if done["inputs"].get(name) != commit:
                return f"running again: its input '{name}' changed"
        if done["fingerprint"] == marker["fingerprint"]:
            return _why_altered(path, done)
        changes = [
            f"{key} {done['config'].get(key)!r} -> {marker['config'].get(key)!r}"
            for key in sorted({*done["config"], *marker["config"]})
            if done["config"].get(key) != marker["config"].get(key)
        ]
        if done.get("version") != marker["version"]:
            changes.append(f"afm-dist {done.get('version')} -> {marker['version']}")
        return "running again: " + ("; ".join(changes) or "its inputs changed")

    def _resumable(self, path: str, marker: Started) -> bool:
        """Return whether the very same work was interrupted in this folder: only then are its files kept."""
        started = storage.join(path, STARTED)
        return (
            self.resume == "auto"
            and not storage.exists(storage.join(path, SUCCESS))
            and _started(started) == marker
        )


def read_success(folder: str) -> Done:
    """Read the ``_SUCCESS`` file of a stage's folder.

    Raises:
        DataError: there is none, or it is damaged or altered.
    """
    return read_marker(folder, Done, fix=STAGE_FIX)


def read_marker(folder: str, kind: type[Marker], *, fix: str) -> Marker:
    """Read the ``_SUCCESS`` file of a stage's folder as far as it is used here.

    Args:
        folder: Of the stage.
        kind: What is read.
        fix: What to do about an error.

    Raises:
        DataError: there is none, or it is damaged or altered.
    """
    return storage.read_sealed_json(storage.join(folder, SUCCESS), kind, fix=fix, unsealed=True)


def files_of(folder: str, files: Mapping[str, str], *, again: str = STAGE_FIX) -> storage.Checksums:
    """Return what the files of a stage should be.

    Args:
        folder: Of the stage.
        files: As its ``_SUCCESS`` file has them.
        again: What to do about one that was altered.

    Raises:
        DataError: a path leads elsewhere.
    """
    storage.check_inside(folder, files, source=storage.join(folder, SUCCESS))
    return storage.Checksums(folder=folder, sha256=files, again=again)


def _why_altered(folder: str, done: Done) -> str | None:
    """Explain why what a stage left cannot be used; None when it is as it was left.

    Nothing is known of what an older release left.
    """
    try:
        storage.check_tree(files_of(folder, done.get("files", {}), again="it is made again"))
    except DataError as error:
        return f"running again: {error}"
    return None


def _started(location: str) -> Started | None:
    """Read a ``_STARTED`` file; None where there is none, or a damaged one."""
    try:
        return storage.read_json(location, Started)
    except DataError:
        return None


def check_output(path: str, *, job: str) -> None:
    """Refuse a folder that holds anything but a run of the same job; writes nothing.

    Args:
        path: The run directory to be.
        job: Name of the job.

    Raises:
        OptionError: a dataset, a run of another job, or anybody's files, which a stage of the same
            name as one of them would delete.
    """
    path = storage.absolute(path)
    if storage.is_local(path) and storage.local_path(path).is_file():
        raise OptionError(f"--output {path}: a file; name a folder")
    names = [name for name in storage.list_names(path) if not name.startswith(".")]
    if not names:
        return
    owner = _owner(storage.join(path, CONFIG)) if CONFIG in names else None
    # The environment is recorded next: only a run that was killed at once lacks it.
    is_run = names == [CONFIG] or _is_environment(storage.join(path, ENVIRONMENT))
    if owner != job or not is_run:
        others = f"other files ({', '.join(names[:3])})"
        held = others if owner in (None, job) else f"a run of the job {owner}"
        raise OptionError(f"--output {path}: the folder holds {held}; name a new one")


def _owner(config: str) -> str | None:
    """Name the job whose configuration a file holds; None: it is somebody else's, or damaged."""
    try:
        return storage.read_json(config, _Config).get("job")
    except DataError:
        return None


def _is_environment(location: str) -> bool:
    """Return whether a file is one that ``Run`` writes beside the configuration."""
    try:
        storage.read_json(location, _Environment)
    except DataError:
        return False
    return True


def environment() -> dict[str, Any]:
    """Describe versions, processors, memory and source revision, which a figure is repeated with."""
    packages = {}
    for package in RECORDED_PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            packages[package] = "absent"
    return {
        "afm_dist": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "machine": platform.machine(),
        "processor": _processor(),
        "git_revision": _git_revision(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory() -> int:
    """Return the bytes of memory of this machine, or of the container where that has less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return min(machine, int(words)) if words.isdecimal() else machine


def _git_revision() -> str:
    """Return the commit of these sources and whether they have changed; never that of a parent folder."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    revision = _git("rev-parse", "HEAD") if tracked else None
    if revision is None:
        return "unknown"
    return f"{revision} with changes" if _git("status", "--porcelain", "--untracked-files=no") else revision


def _git(*arguments: str) -> str | None:
    """Run git in the folder of these sources; None where it has no answer."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
