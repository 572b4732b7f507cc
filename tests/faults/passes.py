"""What the fault tests of the statistics pass run, and how they see what was computed how often."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afm_dist import storage
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.models import build_model
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import digest_of
from afm_dist.statistics.observe import Observer, forward_batch
from afm_dist.statistics.partials import Partials
from tests.small_dataset import FIELDS, write_dataset

LAYERS = ["mlp.3", "mlp.6"]
# Each shard is one batch, and its rows tell which.
BATCH_SIZE = 500
GROUPS = 12
FIRST_ROWS = 60

_DRAWING = threading.Lock()

Act = Callable[[int], None]


def write_shards(location: Path) -> Manifest:
    """A training split of one shard, one batch per group; no two of them have as many rows."""
    return write_dataset(location, splits={"train": tuple(range(FIRST_ROWS, FIRST_ROWS + GROUPS))})


def model() -> nn.Module:
    # Drivers in threads share one random generator.
    with _DRAWING:
        torch.manual_seed(0)
        model = build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (12, 10, 8), "dropout": 0.5})
        nn.init.normal_(model.embedding.weight, std=0.5)
    return model


def expected_digest(manifest: Manifest, max_groups: int = GROUPS) -> str:
    """Of the moments that a plain loop gives: group by group, summed in order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    watched = model().eval()
    merged: dict[str, Moments] = {}
    for group in manifest.groups("train", max_groups):
        observer = Observer(watched, LAYERS)
        with torch.inference_mode(), observer.watching():
            for shard in group:
                for batch in read_batches(manifest, [shard], BATCH_SIZE):
                    forward_batch(watched, batch)
        for name, part in observer.moments.items():
            merged[name] = merged[name].merge(part) if name in merged else part
    torch.set_num_threads(threads)
    return digest_of(merged)


class Watched:
    """Calls the model, notes each call with the group it was for, then acts.

    Args:
        log: File with a line per call.
        act: Called with the group, in the worker, after the call.
    """

    def __init__(self, log: Path, act: Act | None = None) -> None:
        self.log = str(log)
        self.act = act

    def __call__(self, model: nn.Module, batch: Batch) -> None:
        group = len(batch) - FIRST_ROWS
        with Path(self.log).open("a") as file:
            file.write(f"{group} {os.getpid()}\n")
        model(batch.ids, batch.numeric)
        if self.act is not None:
            self.act(group)


class Pass:
    """A pass over the shards, and everything it did.

    Args:
        manifest: From ``write_shards``.
        folder: Where the log of calls lies.
        act: See ``Watched``.
        stage: Where partials are committed; default: a folder below the other one.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, act: Act | None = None, stage: Path | None = None
    ) -> None:
        self.manifest = manifest
        self.folder = stage or folder / "stage"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "calls"
        self.forward = Watched(self.log, act)
        self.events: list[dict[str, Any]] = []
        self.heard: Callable[[dict[str, Any]], None] = lambda event: None

    def digest(self, **options: Any) -> str:
        """Run it; the digest of its moments."""
        return digest_of(self.moments(**options))

    def moments(self, **options: Any) -> dict[str, Moments]:
        """Run it."""
        return collect_moments(
            model(),
            self.manifest,
            LAYERS,
            forward_fn=self.forward,
            batch_size=BATCH_SIZE,
            folder=str(self.folder),
            emit=self._emit,
            **options,
        )

    def _emit(self, what: str, /, **details: Any) -> None:
        self.events.append({"event": what, **details})
        self.heard(self.events[-1])

    def happened(self, what: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == what]

    def computed(self) -> Counter[int]:
        """How often each group was computed."""
        return Counter(int(line.split()[0]) for line in self._lines())

    def worker_of(self, group: int) -> int:
        """The process that computed a group last."""
        return [int(line.split()[1]) for line in self._lines() if line.split()[0] == str(group)][-1]

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def partials(self) -> dict[int, Path]:
        """The committed partials, by group."""
        return {int(path.stem[-5:]): path for path in self.folder.glob("partials-*/group-*.safetensors")}

    def left(self) -> list[str]:
        """What lies in the stage's folder."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieOnce:
    """The worker of one group is killed at a point of its commit, the first time it gets there."""

    def __init__(self, group: int, point: str, killed: Path) -> None:
        self.group = group
        self.point = point
        self.killed = str(killed)

    def __call__(self, group: int) -> None:
        if group != self.group or Path(self.killed).exists():
            return
        if self.point == "before the write":
            storage.write_bytes = self._die  # type: ignore[assignment]
        elif self.point == "after the write, before the rename":
            pathlib.Path.replace = self._die  # type: ignore[method-assign,assignment]
        elif self.point == "after the rename":
            rename = pathlib.Path.replace

            def rename_and_die(path: Path, target: Path) -> None:
                rename(path, target)
                self._die()

            pathlib.Path.replace = rename_and_die  # type: ignore[method-assign,assignment]

    def _die(self, *_: Any) -> None:
        Path(self.killed).touch()
        die()


class Straggler:
    """The first attempt at one group is taken for lost, and commits later: when ``go`` appears."""

    def __init__(self, group: int, folder: Path) -> None:
        self.group = group
        self.go, self.begun, self.done = (str(folder / name) for name in ("go", "begun", "done"))

    def __call__(self, group: int) -> None:
        if group != self.group or Path(self.begun).exists():
            return
        Path(self.begun).touch()
        commit = Partials.commit

        def late(partials: Partials, group: int, moments: Mapping[str, Moments]) -> str:
            def wait_and_commit() -> None:
                while not Path(self.go).exists():
                    time.sleep(0.01)
                commit(partials, group, moments)
                Path(self.done).touch()

            Partials.commit = commit  # type: ignore[method-assign]
            threading.Thread(target=wait_and_commit, daemon=True).start()
            raise OSError(errno.EIO, "the network is gone")

        Partials.commit = late  # type: ignore[method-assign]

    def let_go(self) -> None:
        """Let it commit, and wait until it has."""
        Path(self.go).touch()
        deadline = time.monotonic() + 60
        while not Path(self.done).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


class Together:
    """The first groups wait until so many workers have one.

    Args:
        workers: How many.
        folder: Where each leaves a file.
    """

    def __init__(self, workers: int, folder: Path) -> None:
        self.workers = workers
        self.folder = str(folder)

    def __call__(self, group: int) -> None:
        Path(self.folder).mkdir(exist_ok=True)
        Path(self.folder, str(os.getpid())).touch()
        deadline = time.monotonic() + 60
        while len(list(Path(self.folder).iterdir())) < self.workers and time.monotonic() < deadline:
            time.sleep(0.01)


def slowly(group: int) -> None:
    """For a pass that lasts long enough to be disturbed."""
    time.sleep(0.2)


def run_pass(manifest: Manifest, folder: Path, act: Act | None = None) -> tuple[str, list[dict[str, Any]]]:
    """Run a pass in a driver of its own; its digest and its events."""
    trial = Pass(manifest, folder, act)
    return trial.digest(), trial.events


def run_pass_and_die(manifest: Manifest, folder: Path, act: Act | None, point: int | str) -> None:
    """Run a pass in a driver that is killed when so many groups are committed, or at another point."""
    trial = Pass(manifest, folder, act)
    if point == "before the sum":
        Partials.load = lambda *_: die()  # type: ignore[method-assign,assignment,return-value]
    elif point == "while it deletes the partials":
        shutil.rmtree = lambda *_, **__: die()  # type: ignore[assignment]

    def count(event: dict[str, Any]) -> None:
        if len(trial.happened("group committed")) == point:
            die()

    trial.heard = count
    trial.digest()
