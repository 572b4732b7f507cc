"""``ray job submit`` for real: a head of its own on this machine, with token authentication."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from afm_dist.dataset.manifest import Manifest
from tests.jobs.commands import ROOT

RAY = Path(sys.executable).with_name("ray")
START_TIMEOUT_S = 60

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    environment: dict[str, str]

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command of the README, from the root of the repository."""
        return subprocess.run(
            [str(RAY), "job", "submit", "--address", self.address, "--working-dir", ".", "--", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    pytest.fail(f"the head did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # A short folder: Unix sockets below it may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="afm-"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # "python" in a submitted command is the one on the path of `ray start`.
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    gcs, dashboard, client = _free_ports(3)
    command = [str(RAY), "start", "--head", "--block", "--num-cpus", "2", "--node-ip-address", "127.0.0.1"]
    command += ["--port", str(gcs), "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(client)]
    command += ["--object-store-memory", "200000000", "--temp-dir", str(folder), "--disable-usage-stats"]
    log = folder / "head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_listening(dashboard, process, log)
        yield Head(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        # Only this head: `ray stop` would end every Ray of this machine.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_relative_path_is_refused_with_an_explanation(head: Head) -> None:
    result = head.submit("python", "jobs/prepare.py", "--source", "synthetic", "--output", "data/clicks")
    assert result.returncode == 1  # Ray's own code for any failure; the log has the job's
    assert "--output data/clicks: relative path under 'ray job submit'" in result.stdout
    assert "failed with exit code 2" in result.stdout
    assert "Traceback" not in result.stdout


def test_submitted_job_runs_its_tasks_and_succeeds(head: Head, tmp_path: Path) -> None:
    output = tmp_path / "data"
    command = ["python", "jobs/prepare.py", "--source", "synthetic", "--rows", "5000"]
    result = head.submit(*command, "--output", str(output))
    assert result.returncode == 0, result.stdout + result.stderr
    manifest = Manifest.load(str(output))
    assert sum(manifest.rows(split) for split in manifest.splits) == 5000
