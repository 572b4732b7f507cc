"""The same dataset for any number of workers, and after killed workers and a killed driver.

Kills in Ray workers and drivers of this process are in ``test_pipeline`` and ``test_resume``; these are
slower, and closer to a user's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from afm_dist.dataset.manifest import Manifest
from data_prep.sources.synthetic import write_synthetic
from tests.processes import descendants

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
ROWS = 80_000
PREPARE = """
import sys
import ray
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.sources.criteo import CriteoSource

log, output, workers, block_bytes = sys.argv[1:]
small = {"include_dashboard": False, "object_store_memory": 200_000_000, "log_to_driver": False}
ray.init(address="local", num_cpus=int(workers), **small)
prepare(CriteoSource([log], block_bytes=int(block_bytes)), output, Protocol(rows_per_shard=7_000))
"""


@pytest.fixture(scope="module")
def log(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("raw")
    return write_synthetic(str(folder), ROWS, seed=3).paths[0]


def _start(log: str, output: Path, workers: int, block_bytes: int) -> subprocess.Popen[bytes]:
    arguments = [log, str(output), str(workers), str(block_bytes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _finish(job: subprocess.Popen[bytes]) -> None:
    _, errors = job.communicate()
    assert job.returncode == 0, errors.decode()[-2000:]


def _kill_when(job: subprocess.Popen[bytes], victims: Callable[[], list[int]]) -> None:
    """Kill -9 what ``victims`` names as soon as it names anything."""
    while job.poll() is None:
        for victim in (found := victims()):
            os.kill(victim, signal.SIGKILL)
        if found:
            return
        time.sleep(0.01)
    pytest.fail("the job ended before anything could be killed")


@pytest.fixture(scope="module")
def undisturbed(log: str, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    output = tmp_path_factory.mktemp("undisturbed") / "data"
    _finish(_start(log, output, workers=2, block_bytes=2_000_000))
    return Manifest.load(str(output))


@pytest.mark.parametrize(
    ("workers", "block_bytes"), [pytest.param(1, 5_000_000, marks=pytest.mark.slow), (4, 700_000)]
)
def test_workers_and_blocks_do_not_change_the_manifest(
    undisturbed: Manifest, log: str, tmp_path: Path, workers: int, block_bytes: int
) -> None:
    _finish(_start(log, tmp_path / "data", workers, block_bytes))

    assert Manifest.load(str(tmp_path / "data")).fingerprint() == undisturbed.fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["parsing", "encoding", "shuffling"])
def test_a_killed_worker_does_not_change_the_manifest(
    undisturbed: Manifest, log: str, tmp_path: Path, stage: str
) -> None:
    job = _start(log, tmp_path / "data", workers=2, block_bytes=700_000)

    _kill_when(job, lambda: [p for p, title in descendants(job.pid).items() if f"ray::{stage}" in title])
    _finish(job)

    assert Manifest.load(str(tmp_path / "data")).fingerprint() == undisturbed.fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["parse", "encode", "shuffle"])
def test_a_killed_driver_goes_on_where_it_was(
    undisturbed: Manifest, log: str, tmp_path: Path, stage: str
) -> None:
    output = tmp_path / "data"
    receipts = output / ".work" / stage
    job = _start(log, output, workers=2, block_bytes=700_000)

    _kill_when(job, lambda: [job.pid] if len(list(receipts.glob("*.json"))) >= 3 else [])
    job.communicate()
    assert not (output / "manifest.json").exists()
    done = {path: path.stat().st_mtime_ns for path in receipts.glob("*.json")}
    again = _start(log, output, workers=2, block_bytes=700_000)
    while again.poll() is None and receipts.exists():
        # Nothing that was done is done again.
        with contextlib.suppress(FileNotFoundError):
            assert all(path.stat().st_mtime_ns == before for path, before in done.items())
        time.sleep(0.05)
    _finish(again)

    assert Manifest.load(str(output)).fingerprint() == undisturbed.fingerprint()
    assert not list(output.rglob("*.tmp"))
