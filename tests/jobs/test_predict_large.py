"""Ten million rows in bounded memory, killed in the middle and resumed with the same bytes. Long, so slow."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.jobs.commands import ROOT, succeed
from tests.jobs.conftest import Compressed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

ROWS = 10_000_000
# Large enough for what pyarrow reads ahead of a CSV file to be the same: up to 300 MB of the driver.
SMALLER = 4_000_000


def write_rows(path: Path, rows: int, log: Path) -> list[str]:
    """The rows of a log again and again; the command that scores them."""
    header, _, text = log.read_text().partition("\n")
    lines = text.splitlines(keepends=True)
    with path.open("w") as file:
        file.write(f"{header}\n")
        for _ in range(rows // len(lines)):
            file.write(text)
        file.writelines(lines[: rows % len(lines)])
    return ["--input", str(path)]


def descendants(process: int) -> list[int]:
    """A process and all that it started, Ray included."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            after_name = (folder / "stat").read_text().rpartition(") ")[2].split()
            parents.setdefault(int(after_name[1]), []).append(int(folder.name))
    found, waiting = [], [process]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def peaks(printed: str) -> tuple[int, int]:
    """Megabytes of a worker and of the driver."""
    worker, driver = re.search(r"of a worker ([\d,]+) MB, of the driver ([\d,]+) MB", printed).groups()
    return int(worker.replace(",", "")), int(driver.replace(",", ""))


def kill_in_the_middle(command: list[str], output: Path, blocks: int) -> None:
    """Run a job; kill -9 it and its Ray once half of the blocks are scored."""
    with (output.parent / "log").open("wb") as log:
        job = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=log, stderr=log)
        while job.poll() is None:
            if len(list(Path(f"{output}.work").glob("score-*/*.json"))) >= blocks // 2:
                for process in descendants(job.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
    assert job.returncode == -signal.SIGKILL, (output.parent / "log").read_text()


def test_ten_million_rows_in_bounded_memory_resumed_with_the_same_bytes(
    compressed: Compressed, tmp_path: Path
) -> None:
    log = Path(compressed.data).parents[1] / "clicks.csv"
    job = ["jobs/predict.py", "--checkpoint", f"{compressed.output}/checkpoint", "--keep", "user"]
    small = [*job, *write_rows(tmp_path / "small.csv", SMALLER, log)]
    large = [*job, *write_rows(tmp_path / "large.csv", ROWS, log)]
    undisturbed, killed = tmp_path / "undisturbed.parquet", tmp_path / "killed.parquet"

    small_worker, small_driver = peaks(succeed(*small, "--output", str(tmp_path / "small.parquet")))
    worker, driver = peaks(succeed(*large, "--output", str(undisturbed), timeout=1500))
    print(f"worker {small_worker} MB for {SMALLER:,} rows, {worker} MB for {ROWS:,}")
    print(f"driver {small_driver} MB for {SMALLER:,} rows, {driver} MB for {ROWS:,}")
    assert worker < 1.25 * small_worker
    assert driver < 1.25 * small_driver

    blocks = -(-(tmp_path / "large.csv").stat().st_size // (32 << 20))
    kill_in_the_middle([*large, "--output", str(killed)], killed, blocks)
    assert not killed.exists()
    assert "were done before" in succeed(*large, "--output", str(killed), timeout=1500)

    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (undisturbed, killed)]
    print(f"sha256 {digests[0]}")
    assert digests[0] == digests[1]
    assert pq.read_metadata(killed).num_rows == ROWS
    assert not Path(f"{killed}.work").exists()
